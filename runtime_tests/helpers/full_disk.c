// A disk that is full from the n-th change on, for a process that preloads this library (LD_PRELOAD).
//
// FULL_DISK_FOLDER  the folder that is on the disk
// FULL_DISK_AFTER   how many changes in it still succeed: files and folders made, writes, space reserved, renames, flushes
//
// Every later change fails with ENOSPC. Removing and reading still work, as they do on a real disk.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long changes;

static int within(const char *path) {
    const char *folder = getenv("FULL_DISK_FOLDER");
    size_t length = folder ? strlen(folder) : 0;
    return length && strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == 0);
}

// True if this change of a file at `path` fails.
static int refused(const char *path) {
    char full[PATH_MAX], folder[PATH_MAX];
    const char *after = getenv("FULL_DISK_AFTER");
    if (!after) return 0;
    if (path[0] != '/') {
        if (!getcwd(folder, sizeof folder)) return 0;
        snprintf(full, sizeof full, "%.2000s/%.2000s", folder, path);
        path = full;
    }
    return within(path) && atomic_fetch_add(&changes, 1) >= atol(after);
}

static int refused_file(int file) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return path[0] == '/' && refused(path);  // a pipe or a socket is on no disk
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FULL return errno = ENOSPC, -1

ssize_t write(int file, const void *data, size_t size) {
    if (refused_file(file)) FULL;
    return REAL(write)(file, data, size);
}

ssize_t pwrite(int file, const void *data, size_t size, off_t at) {
    if (refused_file(file)) FULL;
    return REAL(pwrite)(file, data, size, at);
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
    if (refused_file(file)) FULL;
    return REAL(pwrite64)(file, data, size, at);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    if (refused_file(file)) FULL;
    return REAL(writev)(file, parts, count);
}

int posix_fallocate(int file, off_t at, off_t size) {
    return refused_file(file) ? ENOSPC : REAL(posix_fallocate)(file, at, size);
}

int posix_fallocate64(int file, off64_t at, off64_t size) {
    return refused_file(file) ? ENOSPC : REAL(posix_fallocate64)(file, at, size);
}

int fsync(int file) {
    if (refused_file(file)) FULL;
    return REAL(fsync)(file);
}

int mkdir(const char *path, mode_t mode) {
    if (refused(path)) FULL;
    return REAL(mkdir)(path, mode);
}

int rename(const char *from, const char *to) {
    if (refused(to)) FULL;
    return REAL(rename)(from, to);
}

#define OPENS(name)                                                          \
    int name(const char *path, int flags, ...) {                             \
        va_list more;                                                        \
        va_start(more, flags);                                               \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, int) : 0; \
        va_end(more);                                                        \
        if ((flags & O_CREAT) && refused(path)) FULL;                        \
        return REAL(name)(path, flags, mode);                                \
    }
OPENS(open)
OPENS(open64)
