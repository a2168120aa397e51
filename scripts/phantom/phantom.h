/* What the parts of the phantom share: the memory that is handed out as a device's or as pinned. */

#ifndef PHANTOM_H
#define PHANTOM_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEVICES = 16 };
enum { MOVED = 65536 }; /* bytes up to which a copy is made; of a longer one only the count matters */
enum kind { ON_DEVICE, PINNED };

struct block {
    char *base;
    size_t size;
    int device;
    struct block *next;
};

extern __thread int phantom_device;

int phantom_devices(void);
size_t phantom_capacity(void);
size_t phantom_used(void);

/* Account `size` bytes to the current device; 0, or 1 when it has no room. */
int phantom_account(size_t size);
void phantom_release(int device, size_t size);

/* The block that holds `pointer`, or one whose base is NULL. */
struct block phantom_find(enum kind kind, const void *pointer);
void phantom_note(enum kind kind, void *base, size_t size, int device);
/* Forget what lies in the range; the blocks' count. */
int phantom_forget(enum kind kind, const void *base, size_t size);

/* Address space that takes memory only where it is touched; NULL when there is none. */
void *phantom_reserve(size_t size);

void phantom_copy(void *to, const void *from, size_t size);

/* Something to be called by: a stream, an event, a descriptor. */
void *phantom_handle(void);

#endif
