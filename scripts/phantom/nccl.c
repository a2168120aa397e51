/* NCCL between processes of this machine. Messages up to MOVED bytes are exchanged through shared
   memory, longer ones only met: every rank waits for the others, and one whose bytes are others than
   theirs ends the run, as it would hang a real one. */

#define _GNU_SOURCE
#include "phantom.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PATIENCE = 6000000 }; /* rests of 20 µs: two minutes */
enum { SUM, PRODUCT, MAX, MIN };

typedef struct {
    char name[128];
} id_t_; /* ncclUniqueId */

struct shared {
    _Atomic int arrived, round;
    long lengths[DEVICES];
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
static void tell(struct comm *comm, const void *message, long size) {
    if (size <= MOVED) memcpy(comm->shared->slot[comm->rank], message, size);
    comm->shared->lengths[comm->rank] = size;
    meet(comm);
    for (int rank = 0; rank < comm->size; rank++)
        if (comm->shared->lengths[rank] != size) give_up(comm, "a message of another length");
}

#define REDUCE(TYPE)                                                                               \
    {                                                                                              \
        TYPE *x = (TYPE *)sum;                                                                     \
        const TYPE *y = (const TYPE *)other;                                                       \
        for (long n = 0; n < count; n++)                                                           \
            x[n] = how == MAX       ? (x[n] > y[n] ? x[n] : y[n])                                  \
                   : how == MIN     ? (x[n] < y[n] ? x[n] : y[n])                                  \
                   : how == PRODUCT ? x[n] * y[n]                                                  \
                                    : x[n] + y[n];                                                 \
    }

/* Types in 16 bits are left as the first rank has them. */
static void reduce(char *sum, const char *other, long count, int type, int how) {
    switch (type) {
    case 0: REDUCE(signed char) break;
    case 1: REDUCE(unsigned char) break;
    case 2: REDUCE(int) break;
    case 4: REDUCE(long) break;
    case 5: REDUCE(unsigned long) break;
    case 7: REDUCE(float) break;
    case 8: REDUCE(double) break;
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
    tell(comm, mine, sizeof mine);
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

int ncclAllReduce(
    const void *from, void *to, size_t count, int type, int how, struct comm *comm, void *stream) {
    char sum[MOVED];
    long size = bytes_of(count, type);
    tell(comm, from, size);
    if (size <= MOVED) {
        summed(comm, sum, count, type, how);
        memcpy(to, sum, size);
    }
    return meet(comm), 0;
}

int ncclReduce(
    const void *from, void *to, size_t count, int type, int how, int root, struct comm *comm,
    void *stream) {
    char unread[MOVED];
    return ncclAllReduce(from, comm->rank == root ? to : unread, count, type, how, comm, stream);
}

int ncclBroadcast(
    const void *from, void *to, size_t count, int type, int root, struct comm *comm, void *stream) {
    long size = bytes_of(count, type);
    tell(comm, from, size);
    if (size <= MOVED) memcpy(to, comm->shared->slot[root], size);
    return meet(comm), 0;
}

int ncclBcast(void *at, size_t count, int type, int root, struct comm *comm, void *stream) {
    return ncclBroadcast(at, at, count, type, root, comm, stream);
}

int ncclAllGather(
    const void *from, void *to, size_t count, int type, struct comm *comm, void *stream) {
    long size = bytes_of(count, type);
    tell(comm, from, size);
    for (int rank = 0; rank < comm->size && size <= MOVED; rank++)
        memcpy((char *)to + rank * size, comm->shared->slot[rank], size);
    return meet(comm), 0;
}

int ncclReduceScatter(
    const void *from, void *to, size_t count, int type, int how, struct comm *comm, void *stream) {
    char sum[MOVED];
    long part = bytes_of(count, type), size = part * comm->size;
    tell(comm, from, size);
    if (size <= MOVED) {
        summed(comm, sum, (long)count * comm->size, type, how);
        memcpy(to, sum + comm->rank * part, part);
    }
    return meet(comm), 0;
}

int ncclSend(const void *from, size_t count, int type, int peer, struct comm *comm, void *stream) {
    long size = bytes_of(count, type);
    _Atomic long *full = &comm->shared->full[comm->rank][peer];
    while (atomic_load(full)) rest();
    if (size <= MOVED) memcpy(comm->shared->mail[comm->rank][peer], from, size);
    atomic_store(full, size + 1);
    return 0;
}

int ncclRecv(void *to, size_t count, int type, int peer, struct comm *comm, void *stream) {
    long size = bytes_of(count, type), found;
    _Atomic long *full = &comm->shared->full[peer][comm->rank];
    while (!(found = atomic_load(full))) rest();
    if (found != size + 1) give_up(comm, "something of another length was sent");
    if (size <= MOVED) memcpy(to, comm->shared->mail[peer][comm->rank], size);
    atomic_store(full, 0);
    return 0;
}
