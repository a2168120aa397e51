/* Another host's memory, for what opens files as Python does (`open` of the C library): where
   PHANTOM_MEMINFO names a file, it is read instead of /proc/meminfo, and of a container's limits
   nothing can be read. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static const char *elsewhere(const char *path) {
    const char *told = getenv("PHANTOM_MEMINFO");
    if (!told || !path) return path;
    if (!strcmp(path, "/proc/meminfo")) return told;
    return strncmp(path, "/sys/fs/cgroup", 14) ? path : "/nowhere";
}

static int really(const char *name, const char *path, int flags, int mode) {
    int (*next)(const char *, int, ...) = dlsym(RTLD_NEXT, name);
    return next(elsewhere(path), flags, mode);
}

#define OPEN(NAME)                                                                                 \
    int NAME(const char *path, int flags, ...) {                                                   \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        int mode = va_arg(rest, int);                                                              \
        va_end(rest);                                                                              \
        return really(#NAME, path, flags, mode);                                                   \
    }

OPEN(open)
OPEN(open64)
