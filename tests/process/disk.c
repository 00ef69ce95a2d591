/* A disk that is slow, lies, is full or fails once: to be preloaded into a node.

   It stands between a process and libc, for the files of a store: `broker.*` in the
   folder DISK_FOLDER, without SQLite's -shm, which is memory. SQLite and the journal
   both come by here. What it does is told by a page of numbers that is shared with a
   test (DISK_CONTROL; tests/process/disk.py has the same list), at any time.

   With `keeps` each write first puts what it writes over into the file
   DISK_CONTROL.undo, and each sync that is meant leaves a mark there. So a test can
   take back, after a SIGKILL, what a disk without power would not have. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define NAME_BYTES 32
#define CONTROL_BYTES 4096

struct control {
    int64_t slow_us;         /* a sync, or a write that is one: from half as long to half as much again */
    int64_t lies;            /* a sync does nothing, and says that it did */
    int64_t room;            /* bytes until the disk is full; -1: never */
    int64_t overwrites;      /* what is written over needs room as well, as where writes are copies */
    int64_t fail_write_in;   /* the write that fails, from now: 1 is the next; 0: none */
    int64_t fail_sync_in;
    int64_t keeps;
    int64_t writes, syncs, slept_us, lied, refused, failed; /* what has happened */
};

struct record { /* then `size` bytes that were there before */
    int64_t kind; /* one of: */
    int64_t time_ns, offset, length_before, size;
    char name[NAME_BYTES];
};

enum { WRITE = 1, TRUNCATE, SYNC };

static struct control *control;
static const char *folder;
static int undo = -1;
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

static ssize_t (*libc_write)(int, const void *, size_t);
static ssize_t (*libc_pwrite)(int, const void *, size_t, off64_t);
static ssize_t (*libc_pread)(int, void *, size_t, off64_t);
static int (*libc_fsync)(int);
static int (*libc_fdatasync)(int);
static int (*libc_ftruncate)(int, off64_t);
static int (*libc_rename)(const char *, const char *);

static void give_up(const char *why)
{
    perror(why);
    _exit(70);
}

static int opened(const char *path, int flags)
{
    int file = open(path, flags | O_CLOEXEC, 0600);
    if (file < 0)
        give_up(path);
    return file;
}

__attribute__((constructor)) static void begin(void)
{
    libc_write = dlsym(RTLD_NEXT, "write");
    libc_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    libc_pread = dlsym(RTLD_NEXT, "pread64");
    libc_fsync = dlsym(RTLD_NEXT, "fsync");
    libc_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    libc_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    libc_rename = dlsym(RTLD_NEXT, "rename");
    folder = getenv("DISK_FOLDER");
    const char *path = getenv("DISK_CONTROL");
    if (folder == NULL || path == NULL)
        return;
    int file = opened(path, O_RDWR);
    control = mmap(NULL, CONTROL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (control == MAP_FAILED)
        give_up(path);
    close(file);
    char name[4096];
    snprintf(name, sizeof name, "%s.undo", path);
    undo = opened(name, O_WRONLY | O_CREAT | O_APPEND);
}

/* The name of a store's file below the folder, or NULL. */
static const char *name_of(const char *path)
{
    size_t length = strlen(folder);
    if (strncmp(path, folder, length) != 0 || strncmp(path + length, "/broker.", 8) != 0)
        return NULL;
    const char *name = path + length + 1;
    size_t end = strlen(name);
    if (end >= NAME_BYTES || strchr(name, '/') || (end > 4 && !strcmp(name + end - 4, "-shm")))
        return NULL;
    return name;
}

static const char *ours(int file, char *path, size_t size)
{
    char link[64];
    if (control == NULL)
        return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, size - 1);
    if (length <= 0)
        return NULL;
    path[length] = 0;
    return name_of(path);
}

static void count(int64_t *number, int64_t more)
{
    __atomic_add_fetch(number, more, __ATOMIC_RELAXED);
}

/* Whether this is the one that is to fail. */
static int fails(int64_t *left)
{
    int64_t before = __atomic_load_n(left, __ATOMIC_RELAXED);
    while (before > 0)
        if (__atomic_compare_exchange_n(left, &before, before - 1, 0, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED))
            break;
    if (before == 1)
        count(&control->failed, 1);
    return before == 1;
}

/* Half of what a sync takes: before it, and after it. */
static void wait_half(void)
{
    int64_t slow_us = __atomic_load_n(&control->slow_us, __ATOMIC_RELAXED);
    if (slow_us <= 0)
        return;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    unsigned seed = (unsigned)now.tv_nsec;
    int64_t wait_us = slow_us / 4 + rand_r(&seed) % (slow_us / 2 + 1);
    count(&control->slept_us, wait_us);
    struct timespec wait = {wait_us / 1000000, wait_us % 1000000 * 1000};
    while (nanosleep(&wait, &wait) != 0 && errno == EINTR)
        ;
}

/* --- what can be taken back --- */

static void put(const void *data, size_t size)
{
    if (libc_write(undo, data, size) != (ssize_t)size)
        give_up("undo");
}

static void keep(int kind, const char *name, int file, off64_t at, size_t size, off64_t length)
{
    struct timespec now;
    if (!control->keeps)
        return;
    if (at >= length)
        size = 0;
    else if (at + (off64_t)size > length)
        size = length - at;
    clock_gettime(CLOCK_MONOTONIC, &now);
    struct record head = {kind, now.tv_sec * 1000000000LL + now.tv_nsec, at, length, size, ""};
    strcpy(head.name, name);
    char *whole = malloc(sizeof head + size); /* in one call: the process may be killed here */
    if (whole == NULL)
        give_up("undo");
    memcpy(whole, &head, sizeof head);
    int reader = file;
    if ((fcntl(file, F_GETFL) & O_ACCMODE) == O_WRONLY) {
        /* Not for one that may be read: to close another would end SQLite's locks. */
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", file);
        reader = opened(link, O_RDONLY);
    }
    if (size && libc_pread(reader, whole + sizeof head, size, at) != (ssize_t)size)
        give_up("undo");
    if (reader != file)
        close(reader);
    put(whole, sizeof head + size);
    free(whole);
}

/* --- the calls --- */

static int may_write(const char *name, int file, off64_t at, size_t size)
{
    struct stat64 about;
    count(&control->writes, 1);
    if (fails(&control->fail_write_in))
        return EIO;
    if (fstat64(file, &about) != 0)
        return errno;
    int64_t need = at + (int64_t)size - about.st_size;
    if (need < 0)
        need = 0;
    if (control->overwrites)
        need = size;
    if (control->room >= 0 && need > control->room) {
        count(&control->refused, 1);
        return ENOSPC;
    }
    if (control->room >= 0)
        control->room -= need;
    keep(WRITE, name, file, at, size, about.st_size);
    return 0;
}

static int synced(const char *name, int file)
{
    count(&control->syncs, 1);
    if (fails(&control->fail_sync_in))
        return EIO;
    if (control->lies)
        count(&control->lied, 1);
    else
        keep(SYNC, name, file, 0, 0, 0);
    return 0;
}

/* `positioned`: at `at`, and else where the file stands. */
static ssize_t written(const char *name, int file, const void *data, size_t size, off64_t at,
                       int positioned)
{
    int syncs = fcntl(file, F_GETFL) & O_DSYNC;
    if (syncs)
        wait_half();
    pthread_mutex_lock(&turn);
    if (!positioned)
        at = lseek64(file, 0, SEEK_CUR);
    int error = may_write(name, file, at, size);
    ssize_t done = -1;
    if (!error) {
        done = positioned ? libc_pwrite(file, data, size, at) : libc_write(file, data, size);
        error = done < 0 ? errno : syncs ? synced(name, file) : 0;
    }
    pthread_mutex_unlock(&turn);
    if (syncs)
        wait_half();
    if (error) {
        errno = error;
        return -1;
    }
    return done;
}

static int sync_by(int (*call)(int), int file)
{
    char path[4096];
    const char *name = ours(file, path, sizeof path);
    if (name == NULL)
        return call(file);
    wait_half();
    pthread_mutex_lock(&turn);
    int error = synced(name, file);
    if (!error && !control->lies && call(file) != 0)
        error = errno;
    pthread_mutex_unlock(&turn);
    wait_half();
    errno = error;
    return error ? -1 : 0;
}

ssize_t write(int file, const void *data, size_t size)
{
    char path[4096];
    const char *name = ours(file, path, sizeof path);
    return name ? written(name, file, data, size, 0, 0) : libc_write(file, data, size);
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t at)
{
    char path[4096];
    const char *name = ours(file, path, sizeof path);
    return name ? written(name, file, data, size, at, 1) : libc_pwrite(file, data, size, at);
}

ssize_t pwrite(int file, const void *data, size_t size, off_t at)
{
    return pwrite64(file, data, size, at);
}

int fsync(int file)
{
    return sync_by(libc_fsync, file);
}

int fdatasync(int file)
{
    return sync_by(libc_fdatasync, file);
}

int ftruncate64(int file, off64_t length)
{
    char path[4096];
    struct stat64 about;
    const char *name = ours(file, path, sizeof path);
    if (name == NULL)
        return libc_ftruncate(file, length);
    pthread_mutex_lock(&turn);
    count(&control->writes, 1);
    int error = fails(&control->fail_write_in) ? EIO : fstat64(file, &about) != 0 ? errno : 0;
    if (!error) {
        size_t gone = about.st_size > length ? about.st_size - length : 0;
        keep(TRUNCATE, name, file, length, gone, about.st_size);
        error = libc_ftruncate(file, length) != 0 ? errno : 0;
    }
    pthread_mutex_unlock(&turn);
    errno = error;
    return error ? -1 : 0;
}

int ftruncate(int file, off_t length)
{
    return ftruncate64(file, length);
}

/* Is there for good when it is done, as on a file system that orders its names. */
int rename(const char *from, const char *to)
{
    if (control != NULL && name_of(to) != NULL) {
        wait_half();
        count(&control->writes, 1);
        if (fails(&control->fail_write_in)) {
            errno = EIO;
            return -1;
        }
    }
    return libc_rename(from, to);
}
