/* Counts the write boundaries of a process, and lets one of them fail. Loaded with LD_PRELOAD; off until it is armed.
 *
 * A boundary is a call by which something changes on disk below the armed folders: create, write, flush, rename, link,
 * unlink, mkdir, rmdir, truncate. Each has a number. At the armed number the process is killed (a write first writes half
 * of its bytes), or the call fails. A disk that is full stays full: what allocates fails from then on. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, COUNT, KILL, FULL, BROKEN };
enum { MAX_ROOTS = 8, LONG = 4096 };

static atomic_long passed;
static long armed_at;
static int kind = OFF, log_fd = -1, n_roots;
static char roots[MAX_ROOTS][LONG];

void fault_arm(const char *how, long at, const char *folders, const char *log) {
    char copy[LONG], *state = NULL;
    snprintf(copy, sizeof copy, "%s", folders);
    n_roots = 0;
    for (char *part = strtok_r(copy, ":", &state); part && n_roots < MAX_ROOTS; part = strtok_r(NULL, ":", &state))
        snprintf(roots[n_roots++], LONG, "%s", part);
    log_fd = *log ? (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
    atomic_store(&passed, 0);
    armed_at = at;
    kind = !strcmp(how, "kill") ? KILL : !strcmp(how, "full") ? FULL : !strcmp(how, "broken") ? BROKEN : COUNT;
}

long fault_passed(void) { return atomic_load(&passed); }

static int below(const char *path) {
    for (int i = 0; i < n_roots; i++) {
        size_t n = strlen(roots[i]);
        if (!strncmp(path, roots[i], n) && (path[n] == '/' || !path[n])) return 1;
    }
    return 0;
}

static void absolute(int folder, const char *path, char out[LONG]) {
    char link[64];
    if (path[0] == '/') { snprintf(out, LONG, "%s", path); return; }
    snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
    ssize_t n = readlink(link, out, LONG - 1);
    if (n < 0) n = 0;
    snprintf(out + n, LONG - (size_t)n, "/%s", path);
}

static int of_descriptor(int fd, char out[LONG]) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, out, LONG - 1);
    if (n <= 0 || out[0] != '/') return 0;
    out[n] = 0;
    return 1;
}

/* 0: go on; else the errno to fail with; -1: write half, then die */
static int boundary(const char *call, const char *path, int allocates, int can_be_half) {
    if (kind == OFF || !below(path)) return 0;
    long number = atomic_fetch_add(&passed, 1) + 1;
    if (log_fd >= 0) {
        char line[LONG + 64];
        int n = snprintf(line, sizeof line, "%ld %s %d %s\n", number, call, allocates, path);
        syscall(SYS_write, log_fd, line, (size_t)n);
    }
    if (kind == KILL && number == armed_at) {
        if (can_be_half) return -1;
        kill(getpid(), SIGKILL);
        pause();
    }
    if (kind == BROKEN && number == armed_at) return EIO;
    if (kind == FULL && allocates && number >= armed_at) return ENOSPC;
    return 0;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define GUARD(call, path, allocates) \
    do { int fault = boundary(call, path, allocates, 0); if (fault > 0) { errno = fault; return -1; } } while (0)

/* --- opening for writing --- */

static int guarded_open(int folder, const char *path, int flags) {
    char full[LONG];
    if (kind == OFF || !(flags & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR)) || (flags & O_DIRECTORY)) return 0;
    absolute(folder, path, full);
    return boundary("open", full, (flags & O_CREAT) != 0, 0);
}

#define OPEN(name, signature, folder, ...)                                   \
    int name signature {                                                     \
        REAL(name);                                                          \
        mode_t mode = 0;                                                     \
        if (flags & (O_CREAT | O_TMPFILE)) {                                 \
            va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); \
        }                                                                    \
        int fault = guarded_open(folder, path, flags);                       \
        if (fault > 0) { errno = fault; return -1; }                         \
        return real(__VA_ARGS__);                                            \
    }
OPEN(open, (const char *path, int flags, ...), AT_FDCWD, path, flags, mode)
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, path, flags, mode)
OPEN(openat, (int folder, const char *path, int flags, ...), folder, folder, path, flags, mode)
OPEN(openat64, (int folder, const char *path, int flags, ...), folder, folder, path, flags, mode)

#define FOPEN(name)                                                          \
    FILE *name(const char *restrict path, const char *restrict mode) {                         \
        REAL(name);                                                          \
        int fault = strpbrk(mode, "wa+") ? guarded_open(AT_FDCWD, path, O_CREAT | O_WRONLY) : 0; \
        if (fault > 0) { errno = fault; return NULL; }                       \
        return real(path, mode);                                             \
    }
FOPEN(fopen)
FOPEN(fopen64)

/* --- writing --- */

ssize_t write(int fd, const void *data, size_t n) {
    REAL(write);
    char path[LONG];
    if (kind != OFF && of_descriptor(fd, path)) {
        int fault = boundary("write", path, 1, 1);
        if (fault < 0) {
            real(fd, data, n / 2);
            kill(getpid(), SIGKILL);
            pause();
        }
        if (fault > 0) { errno = fault; return -1; }
    }
    return real(fd, data, n);
}

#define ON_DESCRIPTOR(type, name, signature, call, allocates, ...)           \
    type name signature {                                                    \
        REAL(name);                                                          \
        char path[LONG];                                                     \
        if (kind != OFF && of_descriptor(fd, path)) GUARD(call, path, allocates); \
        return real(__VA_ARGS__);                                            \
    }
ON_DESCRIPTOR(ssize_t, pwrite, (int fd, const void *data, size_t n, off_t at), "write", 1, fd, data, n, at)
ON_DESCRIPTOR(ssize_t, pwrite64, (int fd, const void *data, size_t n, off64_t at), "write", 1, fd, data, n, at)
ON_DESCRIPTOR(ssize_t, writev, (int fd, const struct iovec *parts, int n), "write", 1, fd, parts, n)
ON_DESCRIPTOR(ssize_t, pwritev, (int fd, const struct iovec *parts, int n, off_t at), "write", 1, fd, parts, n, at)
ON_DESCRIPTOR(ssize_t, copy_file_range, (int in, off64_t *from, int fd, off64_t *to, size_t n, unsigned flags), "write", 1, in, from, fd, to, n, flags)
ON_DESCRIPTOR(ssize_t, sendfile, (int fd, int in, off_t *from, size_t n), "write", 1, fd, in, from, n)
ON_DESCRIPTOR(ssize_t, sendfile64, (int fd, int in, off64_t *from, size_t n), "write", 1, fd, in, from, n)
ON_DESCRIPTOR(int, fsync, (int fd), "fsync", 1, fd)
ON_DESCRIPTOR(int, fdatasync, (int fd), "fsync", 1, fd)
ON_DESCRIPTOR(int, ftruncate, (int fd, off_t size), "truncate", 1, fd, size)
ON_DESCRIPTOR(int, ftruncate64, (int fd, off64_t size), "truncate", 1, fd, size)
ON_DESCRIPTOR(int, fallocate, (int fd, int mode, off_t at, off_t n), "truncate", 1, fd, mode, at, n)

/* --- folders and names --- */

#define ON_PATH(name, signature, folder, path, call, allocates, ...)         \
    int name signature {                                                     \
        REAL(name);                                                          \
        char full[LONG];                                                     \
        if (kind != OFF) { absolute(folder, path, full); GUARD(call, full, allocates); } \
        return real(__VA_ARGS__);                                            \
    }
ON_PATH(rename, (const char *from, const char *to), AT_FDCWD, to, "rename", 0, from, to)
ON_PATH(renameat, (int a, const char *from, int b, const char *to), b, to, "rename", 0, a, from, b, to)
ON_PATH(renameat2, (int a, const char *from, int b, const char *to, unsigned flags), b, to, "rename", 0, a, from, b, to, flags)
ON_PATH(link, (const char *from, const char *to), AT_FDCWD, to, "link", 1, from, to)
ON_PATH(linkat, (int a, const char *from, int b, const char *to, int flags), b, to, "link", 1, a, from, b, to, flags)
ON_PATH(symlink, (const char *from, const char *to), AT_FDCWD, to, "link", 1, from, to)
ON_PATH(symlinkat, (const char *from, int b, const char *to), b, to, "link", 1, from, b, to)
ON_PATH(unlink, (const char *path), AT_FDCWD, path, "unlink", 0, path)
ON_PATH(unlinkat, (int folder, const char *path, int flags), folder, path, "unlink", 0, folder, path, flags)
ON_PATH(rmdir, (const char *path), AT_FDCWD, path, "rmdir", 0, path)
ON_PATH(mkdir, (const char *path, mode_t mode), AT_FDCWD, path, "mkdir", 1, path, mode)
ON_PATH(mkdirat, (int folder, const char *path, mode_t mode), folder, path, "mkdir", 1, folder, path, mode)
ON_PATH(truncate, (const char *path, off_t size), AT_FDCWD, path, "truncate", 1, path, size)
