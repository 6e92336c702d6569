/* Partials: prompts in the making, and who drives each. A driver's calls mark its partial busy
 * under the store's mutex and work outside of it on pages nobody else knows; between two of them
 * another upload with the same id, or the sweep, may take the partial away. */
#include "service/base/log.h"
#include "service/store/upload_internal.h"

#include <stdlib.h>
#include <utlist.h>

void relayd_partial_free(struct relayd_partial *partial)
{
    if (partial == NULL) {
        return;
    }
    relayd_prompts_free(partial->prompt);
    relayd_digest_destroy(partial->digest);
    free(partial->table_key);
    free(partial->held);
    free(partial);
}

static void revoke_locked(struct relayd_partial *partial)
{
    if (partial->driver != NULL) {
        partial->driver->partial = NULL;
        partial->driver = NULL;
    }
}

void relayd_partial_unlink_locked(struct relayd_partial *partial)
{
    struct relayd_store *store = partial->store;
    revoke_locked(partial);
    if (partial->table_key != NULL) {
        HASH_DEL(store->resumable, partial);
    }
    DL_DELETE(store->partials, partial);
    partial->next = NULL; /* a list of one, for relayd_partials_free */
    store->num_uploads--;
    if (partial->prompt != NULL) {
        relayd_model_give_locked(partial->prompt->model, &store->prompt_bytes,
                                 partial->prompt->pages, partial->prompt->num_pages);
    }
}

static void renew_locked(struct relayd_partial *partial)
{
    const struct relayd_store *store = partial->store;
    uint64_t now = relayd_clock_now_ns(store->options.clock);
    uint64_t ms = store->options.upload_expiry_ms;
    partial->expires_ns =
        ms > (UINT64_MAX - 1 - now) / 1000000u ? UINT64_MAX - 1 : now + ms * 1000000u;
}

void relayd_partial_drive_locked(struct relayd_partial *partial, struct relayd_upload *driver)
{
    revoke_locked(partial);
    partial->driver = driver;
    driver->partial = partial;
    renew_locked(partial);
}

enum relay_code relayd_upload_enter(struct relayd_upload *upload, struct relayd_partial **out,
                                    struct relay_error *err)
{
    enum relay_code code = RELAY_OK;
    relayd_store_lock(upload->store);
    if (upload->partial == NULL) {
        code = RELAY_FAIL(err, RELAY_ABORTED,
                          "another stream goes on with this upload, or it waited for too long");
    } else {
        upload->partial->busy = true;
        *out = upload->partial;
    }
    relayd_store_unlock(upload->store);
    return code;
}

void relayd_upload_leave(struct relayd_upload *upload)
{
    relayd_store_lock(upload->store);
    upload->partial->busy = false;
    renew_locked(upload->partial);
    relayd_store_unlock(upload->store);
}

void relayd_upload_detach(struct relayd_upload *upload)
{
    struct relayd_store *store = upload->store;
    struct relayd_partial *partial;
    bool wait = false;
    relayd_store_lock(store);
    partial = upload->partial;
    if (partial != NULL) {
        partial->busy = false;
        wait =
            partial->table_key != NULL && !partial->broken && store->options.upload_expiry_ms != 0;
        if (wait) {
            revoke_locked(partial);
            renew_locked(partial);
        } else {
            relayd_partial_unlink_locked(partial);
        }
    }
    relayd_store_unlock(store);
    if (!wait) {
        relayd_partial_free(partial);
    }
    free(upload);
}

struct relayd_partial *relayd_partials_sweep_locked(struct relayd_store *store, uint64_t now_ns)
{
    struct relayd_partial *list = NULL;
    struct relayd_partial *partial, *following;
    const bool drivers_too = store->options.upload_expiry_ms != 0 && now_ns != UINT64_MAX;
    DL_FOREACH_SAFE(store->partials, partial, following)
    {
        if (now_ns >= partial->expires_ns && !partial->busy &&
            (partial->driver == NULL || drivers_too)) {
            relayd_partial_unlink_locked(partial);
            partial->next = list;
            list = partial;
        }
    }
    return list;
}

uint32_t relayd_partials_free(struct relayd_partial *list)
{
    uint32_t n = 0;
    while (list != NULL) {
        struct relayd_partial *partial = list;
        list = partial->next;
        RELAYD_LOG(INFO, "upload.dropped", "id=%s tokens=%u", partial->prompt->id,
                   partial->prompt->num_tokens);
        relayd_partial_free(partial);
        n++;
    }
    return n;
}
