/* What each failure looks like: the status to act on, and the one line that says what happened.
 * Ends with 0 only if every failure had the status it should have.
 *
 *     errors [DIRECTORY]      default: a temporary one here, removed at the end
 *
 * The full disk is a tmpfs of 1 MiB that only this process sees. Where the system does not let us
 * mount one, name a directory on a small or full file system in TSW_FULL_DIR; without either that
 * one failure is not shown and the program ends with 77. */
#include "example.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

enum { NUMEL = 4096, FULL_BYTES_MAX = 256 << 20 };

static int surprises;

/* Prints one failure and counts it where it is not the one expected. */
static void expect(const char *what, tsw_status status, tsw_status expected)
{
    char message[1024] = "";
    if (status < 0)
        tsw_last_error_message(message, sizeof message);
    printf("%-22s %-24s %s\n", what, tsw_status_name(status), message);
    if (status != expected) {
        printf("%-22s expected %s\n", "", tsw_status_name(expected));
        surprises++;
    }
}

static tsw_tensor tensor_of(void *data, uint64_t numel, uint32_t dtype)
{
    return (tsw_tensor){.data = data, .numel = numel, .dtype = dtype};
}

/* A submission that is well-formed succeeds; what storage says about it comes out of the ticket. */
static tsw_status out(tsw_engine *engine, tsw_tensor tensor, const char *path)
{
    tsw_ticket ticket;
    const tsw_status status = tsw_engine_swap_out(engine, &tensor, &path, 1, &ticket);
    return status < 0 ? status : tsw_ticket_wait(engine, ticket, TSW_WAIT_FOREVER, NULL);
}

static tsw_status in(tsw_engine *engine, tsw_tensor tensor, const char *path)
{
    tsw_ticket ticket;
    const tsw_status status = tsw_engine_swap_in(engine, &tensor, &path, 1, &ticket);
    return status < 0 ? status : tsw_ticket_wait(engine, ticket, TSW_WAIT_FOREVER, NULL);
}

static void show_files(tsw_engine *engine, const char *directory, float *data)
{
    const tsw_tensor tensor = tensor_of(data, NUMEL, TSW_F32);
    char *nowhere = path_in(directory, "no-such-directory/tensor");
    char *missing = path_in(directory, "missing");
    char *file = path_in(directory, "short");

    expect("missing directory", out(engine, tensor, nowhere), TSW_ERR_NOT_FOUND);
    expect("missing file", in(engine, tensor, missing), TSW_ERR_NOT_FOUND);
    check(out(engine, tensor_of(data, NUMEL - 1, TSW_F32), file), "a file one element short");
    expect("short file", in(engine, tensor, file), TSW_ERR_SIZE_MISMATCH);
    free(nowhere);
    free(missing);
    free(file);
}

static void show_swapper(tsw_engine *engine, const char *directory, float *data)
{
    const tsw_tensor half = tensor_of(data, NUMEL, TSW_F16);
    const tsw_tensor whole = tensor_of(data, NUMEL, TSW_F32);
    char *path = path_in(directory, "swapped");
    char *nowhere = path_in(directory, "no-such-directory/swapped");
    const char *const good = path, *const bad = nowhere;
    tsw_swapper *swapper;
    tsw_buffer *buffer;
    tsw_status status;

    check(tsw_swapper_new(engine, NULL, &swapper), "swapper");
    expect("no buffers", tsw_swapper_swap_out(swapper, &whole, &good, 1), TSW_ERR_NO_BUFFERS);
    check(tsw_buffer_new(engine, 1 << 20, &buffer), "pinned buffer");
    check(tsw_swapper_add_buffers(swapper, &buffer, 1, TSW_F32), "add buffers");
    expect("wrong dtype", tsw_swapper_swap_out(swapper, &half, &good, 1), TSW_ERR_DTYPE_MISMATCH);
    /* Staged is not written: the failure of the write belongs to the flush. */
    status = tsw_swapper_swap_out(swapper, &whole, &bad, 1);
    if (status >= 0)
        status = tsw_swapper_flush(swapper, TSW_WAIT_FOREVER);
    expect("write after swap out", status, TSW_ERR_NOT_FOUND);
    tsw_swapper_free(swapper);
    tsw_buffer_free(buffer);
    free(path);
    free(nowhere);
}

static void show_arguments(tsw_engine *engine, const char *directory, float *data)
{
    tsw_tensor twice[2] = {tensor_of(data, NUMEL, TSW_F32), tensor_of(data, NUMEL, TSW_F32)};
    char *path = path_in(directory, "arguments");
    const char *const paths[2] = {path, path};
    tsw_config *config = check_memory(tsw_config_new());
    tsw_ticket ticket;

    expect("unknown key", tsw_config_set(config, "queue_dept", "32"), TSW_ERR_CONFIG);
    expect("bad value", tsw_config_set(config, "queue_depth", "many"), TSW_ERR_CONFIG);
    tsw_config_free(config);

    expect("NULL", tsw_engine_new(NULL, NULL), TSW_ERR_NULL_ARGUMENT);
    expect("NULL data", out(engine, tensor_of(NULL, NUMEL, TSW_F32), path), TSW_ERR_NULL_ARGUMENT);
    expect("unknown dtype", out(engine, tensor_of(data, NUMEL, 99), path),
           TSW_ERR_INVALID_ARGUMENT);
    expect("overlapping ranges", tsw_engine_swap_out(engine, twice, paths, 2, &ticket),
           TSW_ERR_INVALID_ARGUMENT);

    /* A ticket ends with its completion; after that it is refused, never mistaken for another. */
    check(tsw_engine_swap_out(engine, twice, paths, 1, &ticket), "swap out");
    check(tsw_ticket_wait(engine, ticket, TSW_WAIT_FOREVER, NULL), "wait");
    expect("stale ticket", tsw_ticket_wait(engine, ticket, 0, NULL), TSW_ERR_BAD_TICKET);
    free(path);
}

static int write_text(const char *path, const char *text)
{
    const int fd = open(path, O_WRONLY | O_CLOEXEC);
    const ssize_t len = (ssize_t)strlen(text);
    const int written = fd >= 0 && write(fd, text, (size_t)len) == len;
    if (fd >= 0)
        close(fd);
    return written;
}

/* Lets this process mount without being root: a user namespace in which it keeps its ids. */
static int enter_user_namespace(void)
{
    char uid_map[64], gid_map[64];
    snprintf(uid_map, sizeof uid_map, "%u %u 1", geteuid(), geteuid());
    snprintf(gid_map, sizeof gid_map, "%u %u 1", getegid(), getegid());
    return unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0 && write_text("/proc/self/setgroups", "deny")
        && write_text("/proc/self/uid_map", uid_map) && write_text("/proc/self/gid_map", gid_map);
}

/* Mounts a tmpfs of 1 MiB on `directory`, seen by this process alone and gone when it ends. Must
 * run before the engine starts a thread. */
static int mount_small(const char *directory)
{
    return (unshare(CLONE_NEWNS) == 0 || enter_user_namespace())
        && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0
        && mount("tmpfs", directory, "tmpfs", 0, "size=1m") == 0;
}

static char *mount_point;

static void unmount_small(void)
{
    umount2(mount_point, MNT_DETACH); /* fails where nothing is mounted, and then need not work */
    rmdir(mount_point);
    free(mount_point);
}

/* The directory of a small file system, or NULL. */
static const char *small_directory(const char *directory)
{
    const char *given = getenv("TSW_FULL_DIR");
    if (given != NULL)
        return given;
    mount_point = path_in(directory, "full");
    if (mkdir(mount_point, 0700) != 0)
        fail(mount_point, strerror(errno));
    atexit(unmount_small);
    return mount_small(mount_point) ? mount_point : NULL;
}

/* Swaps out more than the file system has room for. */
static int show_full_disk(tsw_engine *engine, const char *directory)
{
    struct statvfs file_system;
    uint64_t len_bytes;
    char *path;
    void *data;

    if (statvfs(directory, &file_system) != 0)
        fail(directory, strerror(errno));
    len_bytes = (uint64_t)file_system.f_bavail * file_system.f_frsize + (1 << 20);
    if (len_bytes > FULL_BYTES_MAX)
        return 0; /* filling a large disk would be rude */
    path = path_in(directory, "too-large");
    data = check_memory(calloc(1, (size_t)len_bytes));
    expect("full disk", out(engine, tensor_of(data, len_bytes, TSW_BYTES), path),
           TSW_ERR_NO_SPACE);
    unlink(path);
    free(path);
    free(data);
    return 1;
}

int main(int argc, char **argv)
{
    const char *directory = argc > 1 ? argv[1] : temporary_directory(".");
    const char *small = small_directory(directory);
    float *data = check_memory(calloc(NUMEL, sizeof *data));
    tsw_engine *engine;
    int full_disk_shown;

    check(tsw_engine_new(NULL, &engine), "engine");
    full_disk_shown = small != NULL && show_full_disk(engine, small);
    show_files(engine, directory, data);
    show_swapper(engine, directory, data);
    show_arguments(engine, directory, data);
    tsw_engine_free(engine);
    free(data);

    if (surprises > 0)
        printf("%d of these were not as expected\n", surprises);
    else if (!full_disk_shown)
        printf("no full disk: no small file system can be mounted here; see TSW_FULL_DIR\n");
    return surprises > 0 ? EXIT_FAILURE : full_disk_shown ? EXIT_SUCCESS : EXIT_SKIP;
}
