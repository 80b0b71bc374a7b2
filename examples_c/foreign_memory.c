/* Memory that is the caller's: allocated by somebody else, lent to the engine, and given back
 * through a callback that runs exactly once, when no I/O can touch the memory any more.
 *
 *     foreign_memory [DIRECTORY]      default: a temporary one here, removed at the end */
#include "example.h"

#include <stdatomic.h>

enum { NUMEL = 1 << 20, ALIGNMENT = 2 << 20 };

/* The callback may run on a thread of the engine, hence atomic. */
static atomic_int releases;

static void on_release(void *user_data, void *data, uint64_t len_bytes)
{
    printf("on_release: %llu bytes of %s\n", (unsigned long long)len_bytes,
           (const char *)user_data);
    free(data); /* cudaFreeHost(data) */
    atomic_fetch_add(&releases, 1);
}

static float *allocate(size_t len_bytes)
{
    void *memory;
    /* With a GPU this is cudaHostAlloc(&memory, len_bytes, cudaHostAllocPortable): the device then
     * copies to and from the same pages that storage reads and writes. */
    if (posix_memalign(&memory, ALIGNMENT, len_bytes) != 0)
        fail("posix_memalign", strerror(ENOMEM));
    return memory;
}

static tsw_ticket swap(tsw_engine *engine, int out, float *values, const char *path)
{
    const tsw_tensor tensor = {.data = values, .numel = NUMEL, .dtype = TSW_F32};
    tsw_ticket ticket;
    if (out)
        check(tsw_engine_swap_out(engine, &tensor, &path, 1, &ticket), "swap out");
    else
        check(tsw_engine_swap_in(engine, &tensor, &path, 1, &ticket), "swap in");
    return ticket;
}

/* How many values of the file differ from index * factor; the file must have exactly NUMEL. */
static int wrong_in_file(const char *path, float factor)
{
    FILE *file = fopen(path, "rb");
    float value;
    int count = 0, wrong = 0;
    if (file == NULL)
        fail(path, strerror(errno));
    for (; fread(&value, sizeof value, 1, file) == 1; count++)
        wrong += value != (float)count * factor;
    fclose(file);
    return wrong + abs(count - NUMEL);
}

int main(int argc, char **argv)
{
    const char *directory = argc > 1 ? argv[1] : temporary_directory(".");
    char *path = path_in(directory, "foreign");
    const size_t len_bytes = NUMEL * sizeof(float);
    float *values = allocate(len_bytes);
    tsw_engine *engine;
    tsw_buffer *buffer;
    tsw_ticket ticket;
    int wrong = 0;

    check(tsw_engine_new(NULL, &engine), "engine");
    check(tsw_buffer_register(engine, values, len_bytes, on_release, "posix_memalign", &buffer),
          "register");

    for (int i = 0; i < NUMEL; i++)
        values[i] = (float)i;
    check(tsw_ticket_wait(engine, swap(engine, 1, values, path), TSW_WAIT_FOREVER, NULL), "out");
    memset(values, 0, len_bytes);
    check(tsw_ticket_wait(engine, swap(engine, 0, values, path), TSW_WAIT_FOREVER, NULL), "in");
    for (int i = 0; i < NUMEL; i++)
        wrong += values[i] != (float)i;
    printf("%d floats there and back, %d wrong\n", NUMEL, wrong);

    /* One more time, and the buffer is freed while the request may be in flight: the memory is
     * released only after it. From here on it is no longer ours to touch. */
    for (int i = 0; i < NUMEL; i++)
        values[i] = (float)i * 2;
    ticket = swap(engine, 1, values, path);
    tsw_buffer_free(buffer);
    check(tsw_ticket_wait(engine, ticket, TSW_WAIT_FOREVER, NULL), "last swap out");
    tsw_engine_free(engine); /* nothing is in flight after this */

    wrong += wrong_in_file(path, 2);
    printf("on_release ran %d time(s), %d wrong\n", atomic_load(&releases), wrong);
    free(path);
    return wrong == 0 && atomic_load(&releases) == 1 ? EXIT_SUCCESS : EXIT_FAILURE;
}
