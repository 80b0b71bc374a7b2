/* What every example needs beside tensorswap.h: checking a status, paths, a directory of its own.
 * Include it first: it asks the C library for its POSIX and GNU names. */
#ifndef EXAMPLE_H
#define EXAMPLE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <errno.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "tensorswap.h"

enum { EXIT_SKIP = 77 };

/* Ends the program when something other than the library failed. */
static inline void fail(const char *what, const char *why)
{
    fflush(stdout);
    fprintf(stderr, "%s: %s\n", what, why);
    exit(EXIT_FAILURE);
}

/* Ends the program with the library's own words when a call failed. */
static inline void check(tsw_status status, const char *what)
{
    char message[1024] = "";
    if (status >= 0)
        return; /* TSW_OK, or information such as TSW_END */
    tsw_last_error_message(message, sizeof message);
    fflush(stdout);
    fprintf(stderr, "%s: %s: %s\n", what, tsw_status_name(status), message);
    exit(EXIT_FAILURE);
}

static inline uint64_t now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static inline double mib(uint64_t len_bytes)
{
    return (double)len_bytes / (1 << 20);
}

static inline double ms(uint64_t time_ns)
{
    return (double)time_ns / 1e6;
}

static inline void *check_memory(void *memory)
{
    if (memory == NULL)
        fail("memory", strerror(ENOMEM));
    return memory;
}

/* "directory/name", the name as by printf. The caller frees it. */
__attribute__((format(printf, 2, 3)))
static inline char *path_in(const char *directory, const char *format, ...)
{
    char *name, *path;
    va_list arguments;

    va_start(arguments, format);
    if (vasprintf(&name, format, arguments) < 0)
        fail("path", strerror(ENOMEM));
    va_end(arguments);
    if (asprintf(&path, "%s/%s", directory, name) < 0)
        fail("path", strerror(ENOMEM));
    free(name);
    return path;
}

static char *example_directory; /* the temporary directory, NULL where there is none */

static inline int temporary_remove(const char *path, const struct stat *status, int kind,
                                   struct FTW *place)
{
    (void)status, (void)kind, (void)place;
    return remove(path) != 0 && errno != ENOENT;
}

/* Removes the temporary directory and what is in it. A program that ends in an error may have
 * requests in flight that still create files, hence the repetition. */
static inline void temporary_directory_remove(void)
{
    const struct timespec pause = {0, 10 * 1000 * 1000};

    for (int attempt = 0; example_directory != NULL && attempt < 100; attempt++) {
        nftw(example_directory, temporary_remove, 16, FTW_DEPTH | FTW_PHYS);
        if (access(example_directory, F_OK) != 0)
            break;
        nanosleep(&pause, NULL);
    }
    free(example_directory);
    example_directory = NULL;
}

/* Makes a fresh directory under `parent` and removes it, with all that is in it, at exit. */
static inline const char *temporary_directory(const char *parent)
{
    example_directory = path_in(parent, "tensorswap-XXXXXX");
    if (mkdtemp(example_directory) == NULL)
        fail(example_directory, strerror(errno));
    atexit(temporary_directory_remove);
    return example_directory;
}

#endif
