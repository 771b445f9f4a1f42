"""What a preloaded library does to a node's system calls: fsync that is slow, hangs or fails, and a wall clock that
jumps.

The library reads a small control file that is mapped into every node, so a fault begins and ends at once, without
touching the process. Only the wall clock is shifted; CLOCK_BOOTTIME and CLOCK_MONOTONIC, on which leases and timers
count, stay as they are (rule R15). The faketime library of Debian is not used for that: with the monotonic clock
left alone, its ``clock_nanosleep`` refuses absolute sleeps, which is how Python sleeps.
"""

from __future__ import annotations

import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

CONTROL_VARIABLE = "ACKORD_CHAOS_CONTROL"
_LAYOUT = struct.Struct("<qii")  # nanoseconds of offset, microseconds of delay, mode
_MODES = {"good": 0, "hangs": 1, "fails": 2}

SOURCE = """\
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct control { int64_t offset_ns; int32_t delay_us; int32_t mode; };
static struct control none;
static volatile struct control *control = &none;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("ACKORD_CHAOS_CONTROL");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *found = mmap(0, sizeof none, PROT_READ, MAP_SHARED, fd, 0);
    if (found != MAP_FAILED) control = found;
    close(fd);
}

static int trouble(void) {
    if (control->delay_us > 0) usleep(control->delay_us);
    while (control->mode == 1) usleep(5000);
    if (control->mode == 2) { errno = EIO; return 1; }
    return 0;
}
int fsync(int fd) { return trouble() ? -1 : syscall(SYS_fsync, fd); }
int fdatasync(int fd) { return trouble() ? -1 : syscall(SYS_fdatasync, fd); }
int sync_file_range(int fd, off64_t at, off64_t count, unsigned int flags) {
    int (*real)(int, off64_t, off64_t, unsigned int) = dlsym(RTLD_NEXT, "sync_file_range");
    return trouble() ? -1 : real(fd, at, count, flags);
}

static void shift(struct timespec *t, int64_t by_ns) {
    int64_t ns = t->tv_sec * 1000000000LL + t->tv_nsec + by_ns;
    t->tv_sec = ns / 1000000000LL;
    t->tv_nsec = ns % 1000000000LL;
}
int clock_gettime(clockid_t clock, struct timespec *t) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, t);
    if (result == 0 && control->offset_ns && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        shift(t, control->offset_ns);
    return result;
}
int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec;
    t->tv_usec = now.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *t) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}
/* A deadline on the wall clock was made from the shifted one; on the machine it must not be. A deadline on the
   monotonic clock counts from the machine's start: it is never so large. */
int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (!real) real = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!real) real = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    struct timespec moved = *until;
    if (control->offset_ns && moved.tv_sec > 1000000000) shift(&moved, -control->offset_ns);
    return real(cond, mutex, &moved);
}
"""


def build(folder: Path) -> Path:
    """The compiled library."""
    source, library = folder / "preload.c", folder / "preload.so"
    source.write_text(SOURCE)
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return library


@dataclass(slots=True)
class Control:
    """One node's switches."""

    path: Path
    offset_s: float = 0.0
    delay_ms: float = 0.0
    fsync: str = "good"

    def environment(self, library: Path) -> dict[str, str]:
        self.write()
        return {"LD_PRELOAD": str(library), CONTROL_VARIABLE: str(self.path)}

    def set(
        self, *, offset_s: float | None = None, delay_ms: float | None = None, fsync: str | None = None
    ) -> None:
        """Changes what is given, in the running node."""
        self.offset_s = self.offset_s if offset_s is None else offset_s
        self.delay_ms = self.delay_ms if delay_ms is None else delay_ms
        self.fsync = self.fsync if fsync is None else fsync
        self.write()

    def write(self) -> None:
        data = _LAYOUT.pack(round(self.offset_s * 1e9), round(self.delay_ms * 1000), _MODES[self.fsync])
        with self.path.open("r+b" if self.path.exists() else "wb", buffering=0) as file:
            file.write(data)  # in place: the nodes have it mapped
