/* The text a model is trained on: files joined into one, bytes renumbered to those that occur. */
#ifndef TEXT_DATA_H
#define TEXT_DATA_H

#include "example.h"

#include <limits.h>
#include <sys/stat.h>

enum { TEXT_BYTES_MAX = 64 << 20 };

struct text {
    unsigned char *symbols; /* raw bytes while files are added, then 0 .. alphabet - 1 */
    size_t len;
    size_t alphabet; /* rounded up to a multiple of 8; what is beyond the used ones never occurs */
    int used;        /* how many different bytes occur */
    int files;
};

static inline void text_add_file(struct text *text, const char *path)
{
    FILE *file = fopen(path, "rb");
    struct stat status;
    size_t room;

    if (file == NULL || fstat(fileno(file), &status) != 0)
        fail(path, strerror(errno));
    if (S_ISDIR(status.st_mode))
        fail(path, strerror(EISDIR));
    room = TEXT_BYTES_MAX - text->len;
    if ((uintmax_t)status.st_size < room)
        room = (size_t)status.st_size;
    if (room > 0) { /* a very long text is cut: its beginning is enough to learn from */
        text->symbols = (unsigned char *)check_memory(realloc(text->symbols, text->len + room));
        text->len += fread(text->symbols + text->len, 1, room, file);
        text->files++;
    }
    if (ferror(file))
        fail(path, strerror(errno));
    fclose(file);
}

static inline int is_text_name(const char *name)
{
    const char *suffix = strrchr(name, '.');
    return suffix != NULL && name[0] != '.'
        && (strcmp(suffix, ".rs") == 0 || strcmp(suffix, ".md") == 0 || strcmp(suffix, ".c") == 0
            || strcmp(suffix, ".h") == 0);
}

/* Adds the sources and documents of a directory in the order of their names, so that one tree is
 * always one text. A directory that cannot be read adds nothing. */
static inline void text_add_tree(struct text *text, const char *directory, int recurse)
{
    struct dirent **entries = NULL;
    const int len = scandir(directory, &entries, NULL, alphasort);

    for (int i = 0; i < len; i++) {
        const char *name = entries[i]->d_name;
        char *path = path_in(directory, "%s", name);
        struct stat status;
        if (name[0] != '.' && lstat(path, &status) == 0) {
            if (S_ISDIR(status.st_mode) && recurse)
                text_add_tree(text, path, recurse);
            else if (S_ISREG(status.st_mode) && is_text_name(name))
                text_add_file(text, path);
        }
        free(path);
        free(entries[i]);
    }
    free(entries);
}

/* Cuts the last component off a path; false when there is none. */
static inline int cut_last_component(char *path)
{
    char *slash = strrchr(path, '/');
    if (slash == NULL)
        return 0;
    *slash = '\0';
    return 1;
}

/* Looks for the project's directory from `path` upwards and adds its text. */
static inline int text_add_project_around(struct text *text, char *path)
{
    do {
        char *landmark = path_in(path, "examples_c/train_adam.c");
        const int found = access(landmark, R_OK) == 0;
        free(landmark);
        if (found) {
            static const char *const folders[] = {"docs", "examples_c", "include", "src", "tests"};
            text_add_tree(text, path, 0);
            for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
                char *folder = path_in(path, "%s", folders[i]);
                text_add_tree(text, folder, 1);
                free(folder);
            }
            return 1;
        }
    } while (cut_last_component(path));
    return 0;
}

/* Adds the project's own sources and documents, found above the program, the current directory or
 * this source file. */
static inline void text_add_project(struct text *text)
{
    char path[PATH_MAX];
    const ssize_t len = readlink("/proc/self/exe", path, sizeof path - 1);
    if (len > 0) {
        path[len] = '\0';
        if (text_add_project_around(text, path))
            return;
    }
    if (getcwd(path, sizeof path) != NULL && text_add_project_around(text, path))
        return;
    if (realpath(__FILE__, path) != NULL && text_add_project_around(text, path))
        return;
    fail("default text", "the project's directory is not found; name text files to train on");
}

/* Renumbers the bytes to 0 .. used - 1. */
static inline void text_finish(struct text *text)
{
    unsigned char number[UCHAR_MAX + 1] = {0}, occurs[UCHAR_MAX + 1] = {0};

    for (size_t i = 0; i < text->len; i++)
        occurs[text->symbols[i]] = 1;
    text->used = 0;
    for (int byte = 0; byte <= UCHAR_MAX; byte++)
        if (occurs[byte])
            number[byte] = (unsigned char)text->used++;
    for (size_t i = 0; i < text->len; i++)
        text->symbols[i] = number[text->symbols[i]];
    text->alphabet = ((size_t)text->used + 7) / 8 * 8;
}

#endif
