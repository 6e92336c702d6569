/* Arrays that are as long as they have to be: most calls have few entries, and the largest call's
 * worth for each session is memory that is never used. No threads of its own. */
#ifndef RELAYD_BASE_ROOM_H
#define RELAYD_BASE_ROOM_H

#include <stdint.h>
#include <stdlib.h>

#define RELAYD_ROOM_LEAST 16u

/* The array with room for `need` elements of `size` bytes, moved if it was too short, *room then
 * being what it has. NULL without memory: the old array stays. Elements that come along are not
 * set. */
static inline void *relayd_room(void *array, uint32_t *room, uint32_t need, size_t size)
{
    if (array != NULL && need <= *room) {
        return array;
    }
    uint64_t more = RELAYD_ROOM_LEAST;
    while (more < need) {
        more *= 2;
    }
    void *longer = more > UINT32_MAX ? NULL : reallocarray(array, more, size);
    if (longer != NULL) {
        *room = (uint32_t)more;
    }
    return longer;
}

#endif
