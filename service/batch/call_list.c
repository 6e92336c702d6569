/* Lists of calls in arrival order; no locks: a list has one owner. */
#include "service/batch/call.h"

void relayd_call_list_push(struct relayd_call_list *list, struct relayd_call *call)
{
    call->next = NULL;
    if (list->tail != NULL) {
        list->tail->next = call;
    } else {
        list->head = call;
    }
    list->tail = call;
    list->count++;
}

struct relayd_call *relayd_call_list_pop(struct relayd_call_list *list)
{
    struct relayd_call *call = list->head;
    if (call != NULL) {
        list->head = call->next;
        if (list->head == NULL) {
            list->tail = NULL;
        }
        list->count--;
        call->next = NULL;
    }
    return call;
}

void relayd_call_list_append(struct relayd_call_list *list, struct relayd_call_list *src)
{
    if (src->head == NULL) {
        return;
    }
    if (list->tail != NULL) {
        list->tail->next = src->head;
    } else {
        list->head = src->head;
    }
    list->tail = src->tail;
    list->count += src->count;
    *src = (struct relayd_call_list){0};
}
