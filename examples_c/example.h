/* What every example needs beside tensorswap.h: checking a status, paths, a directory of its own.
 * Include it first: it asks the C library for its POSIX and GNU names. */
#ifndef EXAMPLE_H
#define EXAMPLE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

/* Removes the temporary directory and the files in it. A program that ends in an error may have
 * requests in flight that still create files, hence the repetition. */
static inline void temporary_directory_remove(void)
{
    const struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};

    for (int attempt = 0; example_directory != NULL && attempt < 100; attempt++) {
        DIR *directory = opendir(example_directory);
        struct dirent *entry;
        while (directory != NULL && (entry = readdir(directory)) != NULL)
            unlinkat(dirfd(directory), entry->d_name, 0);
        if (directory != NULL)
            closedir(directory);
        if (rmdir(example_directory) == 0 || errno == ENOENT)
            break;
        nanosleep(&pause, NULL);
    }
    free(example_directory);
    example_directory = NULL;
}

/* Makes a fresh directory under `parent` and removes it, with its files, at exit. */
static inline const char *temporary_directory(const char *parent)
{
    example_directory = path_in(parent, "tensorswap-XXXXXX");
    if (mkdtemp(example_directory) == NULL)
        fail(example_directory, strerror(errno));
    atexit(temporary_directory_remove);
    return example_directory;
}

#endif
