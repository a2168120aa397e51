/* NCCL between processes of this machine. Messages up to MOVED bytes are exchanged through shared
   memory, longer ones only met: every rank waits for the others, and one that calls something else
   than they do, or with other bytes, ends the run, as it would hang or falsify a real one. */

#define _GNU_SOURCE
#include "phantom.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PATIENCE = 6000000 }; /* rests of 20 µs: two minutes at the least */
enum { SUM, PRODUCT, MAX, MIN, AVERAGE };
enum { SPLIT, ALL_REDUCE, REDUCE, BROADCAST, ALL_GATHER, REDUCE_SCATTER };

typedef struct {
    char name[128];
} id_t_; /* ncclUniqueId */

/* What a rank calls; all ranks' are the same. */
struct call {
    int what, type, how, root;
    long size;
};

struct shared {
    _Atomic int arrived, round;
    struct call calls[DEVICES];
    char slot[DEVICES][MOVED];
    _Atomic long full[DEVICES][DEVICES];
    char mail[DEVICES][DEVICES][MOVED];
};

struct comm {
    struct shared *shared;
    int rank, size, splits;
    char name[128];
};

static void rest(void) {
    struct timespec pause = {0, 20000};
    nanosleep(&pause, NULL);
}

static void give_up(struct comm *comm, const char *why) {
    fprintf(stderr, "phantom nccl: rank %d of %s: %s\n", comm->rank, comm->name, why);
    abort();
}

static void meet(struct comm *comm) {
    int round = atomic_load(&comm->shared->round);
    if (atomic_fetch_add(&comm->shared->arrived, 1) + 1 == comm->size) {
        atomic_store(&comm->shared->arrived, 0);
        atomic_fetch_add(&comm->shared->round, 1);
        return;
    }
    for (long waited = 0; atomic_load(&comm->shared->round) == round; waited++) {
        if (waited > PATIENCE) give_up(comm, "the others did not come");
        rest();
    }
}

static struct comm *join(const char *name, int size, int rank) {
    struct comm *comm = calloc(1, sizeof *comm);
    char path[160];
    comm->rank = rank;
    comm->size = size;
    snprintf(comm->name, sizeof comm->name, "%s", name);
    if (size > DEVICES) give_up(comm, "more ranks than there is room for");
    snprintf(path, sizeof path, "/dev/shm/%s", name);
    int file = open(path, O_RDWR | O_CREAT, 0600), rights = PROT_READ | PROT_WRITE;
    if (file < 0 || ftruncate(file, sizeof(struct shared))) give_up(comm, "no shared memory");
    comm->shared = mmap(NULL, sizeof(struct shared), rights, MAP_SHARED, file, 0);
    close(file);
    meet(comm);
    unlink(path);
    meet(comm);
    return comm;
}

static long bytes_of(size_t count, int type) {
    static const int width[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1}; /* ncclDataType_t */
    return (long)count * (type >= 0 && type < 12 ? width[type] : 1);
}

/* Everybody's message into its slot. */
static void tell(struct comm *comm, const void *message, struct call call) {
    if (call.size <= MOVED) memcpy(comm->shared->slot[comm->rank], message, call.size);
    comm->shared->calls[comm->rank] = call;
    meet(comm);
    for (int rank = 0; rank < comm->size; rank++)
        if (memcmp(&comm->shared->calls[rank], &call, sizeof call))
            give_up(comm, "another rank calls something else, or with another length");
}

#define REDUCED(TYPE)                                                                              \
    {                                                                                              \
        TYPE *x = (TYPE *)sum;                                                                     \
        const TYPE *y = (const TYPE *)other;                                                       \
        for (long n = 0; n < count; n++)                                                           \
            x[n] = how == MAX       ? (x[n] > y[n] ? x[n] : y[n])                                  \
                   : how == MIN     ? (x[n] < y[n] ? x[n] : y[n])                                  \
                   : how == PRODUCT ? x[n] * y[n]                                                  \
                                    : x[n] + y[n];                                                 \
        break;                                                                                     \
    }

/* Of types in 16 bits and of averages the first rank's numbers stay: nobody reads them. */
static void reduce(char *sum, const char *other, long count, int type, int how) {
    if (how == AVERAGE) return;
    switch (type) { /* ncclDataType_t */
    case 0: REDUCED(signed char)
    case 1: REDUCED(unsigned char)
    case 2: REDUCED(int)
    case 3: REDUCED(unsigned)
    case 4: REDUCED(long)
    case 5: REDUCED(unsigned long)
    case 7: REDUCED(float)
    case 8: REDUCED(double)
    }
}

static void summed(struct comm *comm, char *sum, long count, int type, int how) {
    memcpy(sum, comm->shared->slot[0], bytes_of(count, type));
    for (int rank = 1; rank < comm->size; rank++)
        reduce(sum, comm->shared->slot[rank], count, type, how);
}

int ncclGetUniqueId(id_t_ *made) {
    memset(made, 0, sizeof *made);
    snprintf(made->name, 64, "phantom-%d-%ld", getpid(), random() + (long)time(NULL));
    return 0;
}

int ncclCommInitRank(struct comm **made, int size, id_t_ id, int rank) {
    return *made = join(id.name, size, rank), 0;
}

int ncclCommInitRankConfig(struct comm **made, int size, id_t_ id, int rank, void *config) {
    return *made = join(id.name, size, rank), 0;
}

int ncclCommInitRankScalable(
    struct comm **made, int size, int rank, int count, id_t_ *ids, void *config) {
    return *made = join(ids->name, size, rank), 0;
}

int ncclCommSplit(struct comm *comm, int color, int key, struct comm **made, void *config) {
    int mine[2] = {color, key}, rank = 0, size = 0;
    char name[128];
    tell(comm, mine, (struct call){SPLIT, 0, 0, 0, sizeof mine});
    for (int other = 0; other < comm->size; other++) {
        int *theirs = (int *)comm->shared->slot[other];
        if (theirs[0] != color) continue;
        size++;
        rank += theirs[1] < key || (theirs[1] == key && other < comm->rank);
    }
    meet(comm);
    snprintf(name, sizeof name, "%.80s-%d-%d", comm->name, comm->splits++, color);
    *made = color < 0 ? NULL : join(name, size, rank);
    return 0;
}

int ncclGetVersion(int *version) { return *version = 22809, 0; }
int ncclCommCount(struct comm *comm, int *size) { return *size = comm->size, 0; }
int ncclCommUserRank(struct comm *comm, int *rank) { return *rank = comm->rank, 0; }
int ncclCommGetAsyncError(struct comm *comm, int *error) { return *error = 0, 0; }
const char *ncclGetErrorString(int error) { return "an error of the phantom"; }
const char *ncclGetLastError(struct comm *comm) { return ""; }

static void reduced(
    struct comm *comm, const void *from, void *to, size_t count, struct call call) {
    char sum[MOVED];
    call.size = bytes_of(count, call.type);
    tell(comm, from, call);
    if (call.size <= MOVED) {
        summed(comm, sum, count, call.type, call.how);
        if (to) memcpy(to, sum, call.size);
    }
    meet(comm);
}

int ncclAllReduce(
    const void *from, void *to, size_t count, int type, int how, struct comm *comm, void *stream) {
    return reduced(comm, from, to, count, (struct call){ALL_REDUCE, type, how, 0, 0}), 0;
}

int ncclReduce(
    const void *from, void *to, size_t count, int type, int how, int root, struct comm *comm,
    void *stream) {
    void *mine = comm->rank == root ? to : NULL;
    return reduced(comm, from, mine, count, (struct call){REDUCE, type, how, root, 0}), 0;
}

int ncclBroadcast(
    const void *from, void *to, size_t count, int type, int root, struct comm *comm, void *stream) {
    long size = bytes_of(count, type);
    tell(comm, from, (struct call){BROADCAST, type, 0, root, size});
    if (size <= MOVED) memcpy(to, comm->shared->slot[root], size);
    return meet(comm), 0;
}

int ncclBcast(void *at, size_t count, int type, int root, struct comm *comm, void *stream) {
    return ncclBroadcast(at, at, count, type, root, comm, stream);
}

int ncclAllGather(
    const void *from, void *to, size_t count, int type, struct comm *comm, void *stream) {
    long size = bytes_of(count, type);
    tell(comm, from, (struct call){ALL_GATHER, type, 0, 0, size});
    for (int rank = 0; rank < comm->size && size <= MOVED; rank++)
        memcpy((char *)to + rank * size, comm->shared->slot[rank], size);
    return meet(comm), 0;
}

int ncclReduceScatter(
    const void *from, void *to, size_t count, int type, int how, struct comm *comm, void *stream) {
    char sum[MOVED];
    long part = bytes_of(count, type), size = part * comm->size;
    tell(comm, from, (struct call){REDUCE_SCATTER, type, how, 0, size});
    if (size <= MOVED) {
        summed(comm, sum, (long)count * comm->size, type, how);
        memcpy(to, sum + comm->rank * part, part);
    }
    return meet(comm), 0;
}

/* Rests until `box` is full, or empty; what it holds then. */
static long until(struct comm *comm, _Atomic long *box, int full) {
    for (long waited = 0; (atomic_load(box) != 0) != full; waited++) {
        if (waited > PATIENCE) give_up(comm, full ? "nothing was sent" : "nobody received");
        rest();
    }
    return atomic_load(box);
}

int ncclSend(const void *from, size_t count, int type, int peer, struct comm *comm, void *stream) {
    long size = bytes_of(count, type);
    _Atomic long *box = &comm->shared->full[comm->rank][peer];
    until(comm, box, 0);
    if (size <= MOVED) memcpy(comm->shared->mail[comm->rank][peer], from, size);
    atomic_store(box, size + 1);
    return 0;
}

int ncclRecv(void *to, size_t count, int type, int peer, struct comm *comm, void *stream) {
    long size = bytes_of(count, type);
    _Atomic long *box = &comm->shared->full[peer][comm->rank];
    if (until(comm, box, 1) != size + 1) give_up(comm, "something of another length was sent");
    if (size <= MOVED) memcpy(to, comm->shared->mail[peer][comm->rank], size);
    atomic_store(box, 0);
    return 0;
}
