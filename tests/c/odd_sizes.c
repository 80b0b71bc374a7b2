/* Sizes, offsets and addresses that no device likes come back exact, and the file's length is
 * exact: DeepSpeed reports success on each of these and loses the data. */
#include "test.h"

static const uint64_t sizes[] = {0, 1, 100, 511, 512, 513, 4095, 4096, 5600, 65537, (1 << 20) + 100};
static const uint64_t offsets[] = {0, 1, 511, 513, 4095};
enum { SIZES = sizeof sizes / sizeof sizes[0], OFFSETS = sizeof offsets / sizeof offsets[0] };
enum { SIZE_MAX_HERE = (1 << 20) + 100, GUARD = 64 };

/* The bytes around a destination stay as they are. */
static int is_guarded(const unsigned char *data, size_t len)
{
    for (size_t i = 0; i < GUARD; i++)
        if (data[-1 - (long)i] != 0xa5 || data[len + i] != 0xa5)
            return 0;
    return 1;
}

/* Writes and reads one tensor at an odd address, through requests or through the swapper. */
static void round_trip(tsw_engine *engine, tsw_swapper *swapper, uint64_t size, uint64_t offset,
                       unsigned char *room, size_t misalignment)
{
    unsigned char *data = room + GUARD + misalignment;
    const tsw_tensor tensor = bytes_at(data, size, offset);
    const char *path = "odd";
    const unsigned seed = (unsigned)(size + offset + misalignment);

    unlink(path);
    fill(data, size, seed);
    if (swapper != NULL) {
        EXPECT_STATUS(tsw_swapper_swap_out(swapper, &tensor, &path, 1), TSW_OK);
        EXPECT_STATUS(tsw_swapper_flush(swapper, TSW_WAIT_FOREVER), TSW_OK);
    } else {
        EXPECT_STATUS(swap_out(engine, tensor, path), TSW_OK);
    }
    /* Written at an offset the file only grows, and the largest end of nothing is its offset. */
    if (size > 0)
        EXPECT(file_len(path) == (long long)(offset + size));
    memset(room, 0xa5, size + misalignment + 2 * GUARD);
    if (swapper != NULL)
        EXPECT_STATUS(tsw_swapper_swap_in(swapper, &tensor, &path, 1), TSW_OK);
    else
        EXPECT_STATUS(swap_in(engine, tensor, path), TSW_OK);
    EXPECT(is_filled(data, size, seed) && is_guarded(data, size));
}

static void all_sizes(tsw_engine *engine, tsw_swapper *swapper)
{
    unsigned char *room = check_memory(malloc(SIZE_MAX_HERE + 4096 + 2 * GUARD));
    for (int i = 0; i < SIZES; i++)
        for (int j = 0; j < OFFSETS; j++)
            if (sizes[i] > 0 || offsets[j] == 0)
                for (size_t misalignment = 0; misalignment < 2; misalignment++)
                    round_trip(engine, swapper, sizes[i], offsets[j], room, misalignment * 3);
    free(room);
}

/* The rules of a file's length. */
static void lengths(tsw_engine *engine)
{
    static char data[10000];
    tsw_tensor tensors[2] = {bytes_at(data, 100, 5000), bytes_at(data, 200, 0)}, keep;
    const char *paths[2] = {"length", "length"};
    tsw_ticket ticket;

    EXPECT_STATUS(swap_out(engine, bytes_at(data, 10000, 0), "length"), TSW_OK);
    EXPECT(file_len("length") == 10000);
    EXPECT_STATUS(swap_out(engine, bytes_at(data, 100, 500), "length"), TSW_OK);
    EXPECT(file_len("length") == 10000); /* inside: only grows */
    keep = bytes_at(data, 100, 0);
    keep.flags = TSW_TENSOR_KEEP_LENGTH;
    EXPECT_STATUS(swap_out(engine, keep, "length"), TSW_OK);
    EXPECT(file_len("length") == 10000);
    check(tsw_engine_swap_out(engine, tensors, paths, 2, &ticket), "swap out");
    EXPECT_STATUS(tsw_ticket_wait(engine, ticket, TSW_WAIT_FOREVER, NULL), TSW_OK);
    EXPECT(file_len("length") == 5100); /* begins at 0: ends with the largest end of the list */
    EXPECT_STATUS(swap_out(engine, bytes_at(data, 7, 0), "length"), TSW_OK);
    EXPECT(file_len("length") == 7);
}

int main(void)
{
    static const char *const backends[] = {"auto", "threads"};
    for (size_t i = 0; i < 2; i++) {
        tsw_engine *engine = new_engine("backend", backends[i]);
        tsw_swapper *swapper;
        tsw_buffer *buffers[2];

        check(tsw_swapper_new(engine, NULL, &swapper), "swapper");
        for (int j = 0; j < 2; j++) /* smaller than the largest tensor, of an odd length */
            check(tsw_buffer_new(engine, 300001, &buffers[j]), "buffer");
        check(tsw_swapper_add_buffers(swapper, buffers, 2, TSW_BYTES), "add");
        all_sizes(engine, NULL);
        all_sizes(engine, swapper);
        lengths(engine);
        tsw_swapper_free(swapper);
        for (int j = 0; j < 2; j++)
            tsw_buffer_free(buffers[j]);
        tsw_engine_free(engine);
    }
    return result();
}
