/* A disk that is slow to sync, for a program that is started with LD_PRELOAD: each fsync and fdatasync takes
   SLOW_DISK_MS longer, and each write to a regular file as long as a disk of SLOW_DISK_MB_S would take for it.
   This needs neither root nor a device of its own. It says nothing of reads. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static void wait_ns(double ns) {
    struct timespec left = {(time_t)(ns / 1e9), (long)((long long)ns % 1000000000)};
    nanosleep(&left, 0);
}

static double setting(const char *name, double otherwise) {
    const char *text = getenv(name);
    return text ? atof(text) : otherwise;
}

static void synced(void) { wait_ns(setting("SLOW_DISK_MS", 500) * 1e6); }

static void written(int fd, ssize_t count) {
    struct stat file;
    if (count > 0 && fstat(fd, &file) == 0 && S_ISREG(file.st_mode))
        wait_ns((double)count / setting("SLOW_DISK_MB_S", 20) * 1e3);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fsync(int fd) { synced(); return REAL(fsync)(fd); }
int fdatasync(int fd) { synced(); return REAL(fdatasync)(fd); }

ssize_t write(int fd, const void *from, size_t count) {
    ssize_t done = REAL(write)(fd, from, count);
    written(fd, done);
    return done;
}

ssize_t pwrite64(int fd, const void *from, size_t count, off64_t at) {
    ssize_t done = REAL(pwrite64)(fd, from, count, at);
    written(fd, done);
    return done;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    ssize_t done = REAL(writev)(fd, parts, count);
    written(fd, done);
    return done;
}
