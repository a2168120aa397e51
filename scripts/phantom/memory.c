/* A device's memory as address space: counted to the byte, zero, and real only where it is written.
   Copies up to MOVED bytes are made, so that small numbers (counts, ids) arrive. */

#define _GNU_SOURCE
#include "phantom.h"

#include <sys/mman.h>

__thread int phantom_device;

static struct block *blocks[2];
static size_t used[DEVICES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

int phantom_devices(void) {
    const char *set = getenv("PHANTOM_DEVICES");
    int count = set ? atoi(set) : 1;
    return count < 1 ? 1 : count > DEVICES ? DEVICES : count;
}

size_t phantom_capacity(void) {
    const char *set = getenv("PHANTOM_BYTES");
    return set ? strtoull(set, NULL, 10) : 150000000000ull;
}

size_t phantom_used(void) { return used[phantom_device]; }

int phantom_account(size_t size) {
    pthread_mutex_lock(&lock);
    int full = used[phantom_device] + size > phantom_capacity();
    if (!full) used[phantom_device] += size;
    pthread_mutex_unlock(&lock);
    return full;
}

void phantom_release(int device, size_t size) {
    pthread_mutex_lock(&lock);
    used[device] -= size;
    pthread_mutex_unlock(&lock);
}

struct block phantom_find(enum kind kind, const void *pointer) {
    struct block found = {NULL, 0, 0, NULL};
    pthread_mutex_lock(&lock);
    struct block *at = blocks[kind];
    while (at && !((char *)pointer >= at->base && (char *)pointer < at->base + at->size))
        at = at->next;
    if (at) found = *at;
    pthread_mutex_unlock(&lock);
    return found;
}

void phantom_note(enum kind kind, void *base, size_t size, int device) {
    struct block *made = malloc(sizeof *made);
    *made = (struct block){base, size, device, NULL};
    pthread_mutex_lock(&lock);
    made->next = blocks[kind];
    blocks[kind] = made;
    pthread_mutex_unlock(&lock);
}

int phantom_forget(enum kind kind, const void *base, size_t size) {
    int count = 0;
    pthread_mutex_lock(&lock);
    for (struct block **at = &blocks[kind]; *at;) {
        struct block *one = *at;
        if (one->base < (char *)base || one->base >= (char *)base + size) {
            at = &one->next;
            continue;
        }
        *at = one->next;
        free(one);
        count++;
    }
    pthread_mutex_unlock(&lock);
    return count;
}

void *phantom_reserve(size_t size) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *base = mmap(NULL, size ? size : 1, PROT_READ | PROT_WRITE, flags, -1, 0);
    return base == MAP_FAILED ? NULL : base;
}

void phantom_copy(void *to, const void *from, size_t size) {
    int is_host = !phantom_find(ON_DEVICE, to).base && !phantom_find(ON_DEVICE, from).base;
    if (size <= MOVED || is_host) memmove(to, from, size);
}

void *phantom_handle(void) { return calloc(1, 64); }
