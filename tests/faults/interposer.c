/* Stands between a process and its files: counts, records, refuses or ends at the calls that change a folder.
 *
 * Loaded with LD_PRELOAD. It does nothing before one of these is called (from Python with ctypes, or by the environment
 * at the start, see `from_environment`):
 *
 *   interposer_record(folder, trace)   appends every change under `folder` to the file `trace`
 *   interposer_stop_at(n)              ends the process at its n-th change, before that is done: nothing more runs
 *   interposer_hold(first, last)       stops it with SIGSTOP at each of these changes, until somebody sends SIGCONT
 *   interposer_full_from(n)            from the n-th change that takes space on there is no space left; 0: there is
 *   interposer_mark(number)            puts a mark into the trace
 *   interposer_shift_clock(seconds)    the wall clock (not the monotonic one) says so much more
 *   interposer_steps(), interposer_space_steps()   how many changes there were
 *
 * All changes are made one after the other, under one lock, so that the trace tells the order in which they happened.
 * A change that fails by itself is none. What is not seen: writes through a shared memory map (only SQLite's -shm file,
 * which is never read after a crash), and calls that go to the kernel without the C library. The tests compare the folder
 * with what the trace says, which would show any.
 *
 * A record of the trace: kind, inode, number, and the lengths of two paths and of the data, then these.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define ENDED_HERE 77
#define PATH_BYTES (2 * PATH_MAX)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static size_t root_length;
static int full_error = ENOSPC;
static char full_while[PATH_MAX];
static int trace = -1;
static long steps, space_steps, stop_at, hold_from, hold_to, full_from, clock_shift;
static int half_written;

struct __attribute__((packed)) record {
    uint8_t kind;
    uint64_t inode, number;
    uint32_t path, other, data;
};

/* What was asked for, from outside. */

void interposer_record(const char *folder, const char *file) {
    if (realpath(folder, root) == NULL) abort();
    root_length = strlen(root);
    trace = (int)syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    steps = space_steps = 0;
}
void interposer_stop_at(long n) { stop_at = n; }
void interposer_hold(long first, long last) {
    hold_from = first;
    hold_to = last;
}
void interposer_full_from(long n) { full_from = n; half_written = 0; }
void interposer_shift_clock(long seconds) { clock_shift = seconds; }
long interposer_steps(void) { return steps; }
long interposer_space_steps(void) { return space_steps; }

/* For processes that don't know of it: INTERPOSER_FOLDER is full while the file INTERPOSER_FULL_WHILE exists (or fails with
 * the error number INTERPOSER_ERROR), and the wall clock says INTERPOSER_CLOCK_SHIFT seconds more. */
__attribute__((constructor)) static void from_environment(void) {
    const char *shift = getenv("INTERPOSER_CLOCK_SHIFT");
    if (shift != NULL) clock_shift = atol(shift);
    const char *error = getenv("INTERPOSER_ERROR");
    if (error != NULL) full_error = atoi(error);
    const char *folder = getenv("INTERPOSER_FOLDER"), *while_there = getenv("INTERPOSER_FULL_WHILE");
    if (folder == NULL || while_there == NULL) return;
    if (strlen(folder) >= sizeof root || strlen(while_there) >= sizeof full_while) abort();
    strcpy(root, folder);
    root_length = strlen(root);
    strcpy(full_while, while_there);
}

/* Which file a call is about. */

static int is_inside(const char *path) {
    if (root_length == 0 || strncmp(path, root, root_length) != 0) return 0;
    if (path[root_length] != '/' && path[root_length] != '\0') return 0;
    size_t length = strlen(path);
    return length < 4 || strcmp(path + length - 4, "-shm") != 0;
}

static int path_of_descriptor(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = '\0';
    return is_inside(path);
}

static int absolute(int folder, const char *name, char *path) {
    if (root_length == 0 || name == NULL) return 0;
    if (name[0] == '/') {
        snprintf(path, PATH_BYTES, "%s", name);
    } else {
        char above[PATH_MAX];
        if (folder == AT_FDCWD) {
            if (getcwd(above, sizeof above) == NULL) return 0;
        } else {
            path_of_descriptor(folder, above);
        }
        snprintf(path, PATH_BYTES, "%s/%s", above, name);
    }
    return is_inside(path);
}

static int exists(const char *path) {
    struct stat found;
    return lstat(path, &found) == 0;
}

static uint64_t inode_of(const char *path) {
    struct stat found;
    return lstat(path, &found) == 0 ? found.st_ino : 0;
}

/* The trace. */

static void note(char kind, uint64_t inode, uint64_t number, const char *path, const char *other, const struct iovec *data,
                 int pieces, size_t length) {
    if (trace < 0) return;
    struct record head = {(uint8_t)kind, inode, number, (uint32_t)strlen(path), (uint32_t)strlen(other), (uint32_t)length};
    struct iovec parts[3] = {{&head, sizeof head}, {(void *)path, head.path}, {(void *)other, head.other}};
    if (syscall(SYS_writev, trace, parts, 3) < 0) abort();
    for (int i = 0; i < pieces && length > 0; i++) {
        size_t part = data[i].iov_len < length ? data[i].iov_len : length;
        if (syscall(SYS_write, trace, data[i].iov_base, part) != (ssize_t)part) abort();
        length -= part;
    }
}

void interposer_mark(long number) {
    pthread_mutex_lock(&lock);
    note('!', 0, (uint64_t)number, "", "", NULL, 0, 0);
    pthread_mutex_unlock(&lock);
}

static int is_full(void) {
    if (full_from != 0 && space_steps >= full_from) return 1;
    return full_while[0] != '\0' && syscall(SYS_faccessat, AT_FDCWD, full_while, F_OK) == 0;
}

/* Whether the change may be made; called with the lock held, before each one. */
static int step(int takes_space) {
    steps++;
    if (stop_at != 0 && steps >= stop_at) syscall(SYS_exit_group, ENDED_HERE);
    /* To this thread, so that it is stopped before the call returns. */
    if (hold_from != 0 && steps >= hold_from && steps <= hold_to)
        syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGSTOP);
    space_steps += takes_space;
    if (!takes_space || !is_full()) return 1;
    errno = full_error;
    return 0;
}

/* Names. */

static int open_at(int folder, const char *name, int flags, mode_t mode) {
    char path[PATH_BYTES];
    if (!(flags & (O_CREAT | O_TRUNC)) || !absolute(folder, name, path))
        return (int)syscall(SYS_openat, folder, name, flags, mode);
    pthread_mutex_lock(&lock);
    int is_new = !exists(path), found = -1;
    struct stat before = {0};
    int empties = !is_new && (flags & O_TRUNC) && stat(path, &before) == 0 && before.st_size > 0;
    if (!(is_new || empties) || step(is_new)) {
        found = (int)syscall(SYS_openat, folder, name, flags, mode);
        if (found >= 0 && is_new) note('C', inode_of(path), 0, path, "", NULL, 0, 0);
        if (found >= 0 && empties) note('T', inode_of(path), 0, path, "", NULL, 0, 0);
    }
    int error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return found;
}

#define MODE_OF(flags)                                                                                                  \
    mode_t mode = 0;                                                                                                    \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                                              \
        va_list more;                                                                                                   \
        va_start(more, flags);                                                                                          \
        mode = va_arg(more, mode_t);                                                                                    \
        va_end(more);                                                                                                   \
    }

int open(const char *name, int flags, ...) { MODE_OF(flags) return open_at(AT_FDCWD, name, flags, mode); }
int open64(const char *name, int flags, ...) { MODE_OF(flags) return open_at(AT_FDCWD, name, flags, mode); }
int openat(int folder, const char *name, int flags, ...) { MODE_OF(flags) return open_at(folder, name, flags, mode); }
int openat64(int folder, const char *name, int flags, ...) { MODE_OF(flags) return open_at(folder, name, flags, mode); }
int creat(const char *name, mode_t mode) { return open_at(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *name, mode_t mode) { return creat(name, mode); }

int mkdirat(int folder, const char *name, mode_t mode) {
    char path[PATH_BYTES];
    if (!absolute(folder, name, path)) return (int)syscall(SYS_mkdirat, folder, name, mode);
    pthread_mutex_lock(&lock);
    int is_new = !exists(path), answer = -1;
    if (!is_new || step(1)) {
        answer = (int)syscall(SYS_mkdirat, folder, name, mode);
        if (answer == 0) note('D', inode_of(path), 0, path, "", NULL, 0, 0);
    }
    int error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return answer;
}
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

int unlinkat(int folder, const char *name, int flags) {
    char path[PATH_BYTES];
    if (!absolute(folder, name, path) || !exists(path)) return (int)syscall(SYS_unlinkat, folder, name, flags);
    pthread_mutex_lock(&lock);
    step(0);
    int answer = (int)syscall(SYS_unlinkat, folder, name, flags);
    if (answer == 0) note('U', 0, 0, path, "", NULL, 0, 0);
    int error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return answer;
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int linkat(int from, const char *name, int to, const char *new_name, int flags) {
    char path[PATH_BYTES], other[PATH_BYTES];
    if (!absolute(from, name, path) || !absolute(to, new_name, other) || exists(other))
        return (int)syscall(SYS_linkat, from, name, to, new_name, flags);
    pthread_mutex_lock(&lock);
    int answer = -1;
    if (step(1)) {
        answer = (int)syscall(SYS_linkat, from, name, to, new_name, flags);
        if (answer == 0) note('L', inode_of(other), 0, path, other, NULL, 0, 0);
    }
    int error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return answer;
}
int link(const char *name, const char *new_name) { return linkat(AT_FDCWD, name, AT_FDCWD, new_name, 0); }

int renameat2(int from, const char *name, int to, const char *new_name, unsigned int flags) {
    char path[PATH_BYTES], other[PATH_BYTES];
    if (!absolute(from, name, path) || !absolute(to, new_name, other) || !exists(path))
        return (int)syscall(SYS_renameat2, from, name, to, new_name, flags);
    pthread_mutex_lock(&lock);
    step(0);
    int answer = (int)syscall(SYS_renameat2, from, name, to, new_name, flags);
    if (answer == 0) note('R', inode_of(other), 0, path, other, NULL, 0, 0);
    int error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return answer;
}
int renameat(int from, const char *name, int to, const char *new_name) { return renameat2(from, name, to, new_name, 0); }
int rename(const char *name, const char *new_name) { return renameat2(AT_FDCWD, name, AT_FDCWD, new_name, 0); }

/* Contents. */

static ssize_t raw_write(int descriptor, const struct iovec *data, int pieces, off_t offset) {
    if (offset < 0) return syscall(SYS_writev, descriptor, data, pieces);
    return syscall(SYS_pwritev, descriptor, data, pieces, (long)offset, 0L);
}

/* `offset` -1: where the descriptor stands. */
static ssize_t write_to(int descriptor, const struct iovec *data, int pieces, off_t offset) {
    char path[PATH_MAX];
    struct stat file;
    if (root_length == 0 || !path_of_descriptor(descriptor, path) || fstat(descriptor, &file) != 0)
        return raw_write(descriptor, data, pieces, offset);
    pthread_mutex_lock(&lock);
    ssize_t written = -1;
    off_t at = offset;
    if (offset < 0) {
        int appends = (int)syscall(SYS_fcntl, descriptor, F_GETFL) & O_APPEND;
        at = fstat(descriptor, &file) == 0 && appends ? file.st_size : lseek(descriptor, 0, SEEK_CUR);
    }
    if (step(1)) {
        written = raw_write(descriptor, data, pieces, offset);
    } else if (!half_written && data[0].iov_len > 1) { /* what still fits, as a disk that fills up does */
        half_written = 1;
        struct iovec half = {data[0].iov_base, data[0].iov_len / 2};
        written = raw_write(descriptor, &half, 1, offset);
    }
    if (written > 0) note('W', file.st_ino, (uint64_t)at, path, "", data, pieces, (size_t)written);
    int error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return written;
}

ssize_t write(int descriptor, const void *data, size_t length) {
    struct iovec one = {(void *)data, length};
    if (root_length == 0) return syscall(SYS_write, descriptor, data, length);
    return write_to(descriptor, &one, 1, -1);
}
ssize_t pwrite(int descriptor, const void *data, size_t length, off_t offset) {
    struct iovec one = {(void *)data, length};
    return write_to(descriptor, &one, 1, offset);
}
ssize_t pwrite64(int descriptor, const void *data, size_t length, off64_t offset) {
    return pwrite(descriptor, data, length, offset);
}
ssize_t writev(int descriptor, const struct iovec *data, int pieces) { return write_to(descriptor, data, pieces, -1); }
ssize_t pwritev(int descriptor, const struct iovec *data, int pieces, off_t offset) {
    return write_to(descriptor, data, pieces, offset);
}
ssize_t pwritev64(int descriptor, const struct iovec *data, int pieces, off64_t offset) {
    return write_to(descriptor, data, pieces, offset);
}

int ftruncate(int descriptor, off_t length) {
    char path[PATH_MAX];
    struct stat file;
    if (root_length == 0 || !path_of_descriptor(descriptor, path) || fstat(descriptor, &file) != 0)
        return (int)syscall(SYS_ftruncate, descriptor, length);
    pthread_mutex_lock(&lock);
    int answer = -1;
    if (step(length > file.st_size)) {
        answer = (int)syscall(SYS_ftruncate, descriptor, length);
        if (answer == 0) note('T', file.st_ino, (uint64_t)length, path, "", NULL, 0, 0);
    }
    int error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return answer;
}
int ftruncate64(int descriptor, off64_t length) { return ftruncate(descriptor, length); }

static int sync_file(int descriptor, long call) {
    char path[PATH_MAX];
    struct stat file;
    if (root_length == 0 || !path_of_descriptor(descriptor, path) || fstat(descriptor, &file) != 0)
        return (int)syscall(call, descriptor);
    pthread_mutex_lock(&lock);
    step(0);
    /* The tests take the trace's word for what is on disk; really syncing would only cost time. */
    note('S', file.st_ino, 0, path, "", NULL, 0, 0);
    pthread_mutex_unlock(&lock);
    return 0;
}
int fsync(int descriptor) { return sync_file(descriptor, SYS_fsync); }
int fdatasync(int descriptor) { return sync_file(descriptor, SYS_fdatasync); }

/* What a process asks for when it wants to know whether a disk is full. */

int statvfs(const char *name, struct statvfs *found) {
    static int (*next)(const char *, struct statvfs *);
    if (next == NULL) *(void **)&next = dlsym(RTLD_NEXT, "statvfs");
    char path[PATH_BYTES];
    int answer = next(name, found);
    if (answer == 0 && absolute(AT_FDCWD, name, path) && is_full()) found->f_bfree = found->f_bavail = 0;
    return answer;
}
int statvfs64(const char *name, struct statvfs64 *found) { return statvfs(name, (struct statvfs *)found); }

/* Time. */

int clock_gettime(clockid_t which, struct timespec *now) {
    int answer = (int)syscall(SYS_clock_gettime, which, now);
    if (answer == 0 && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) now->tv_sec += clock_shift;
    return answer;
}
