/* What files have to say: each with its status, errno and path, and sticky until rewritten. */
#include "test.h"

#include <fcntl.h>

enum { LEN = 100000 };

static char data[LEN];

static void direct(tsw_engine *engine)
{
    const tsw_tensor tensor = bytes_at(data, LEN, 0);
    char long_name[300];

    EXPECT_ERROR(swap_out(engine, tensor, "no/such/file"), TSW_ERR_NOT_FOUND, "no/such/file");
    EXPECT(tsw_last_error_os() == ENOENT && strstr(last_message(), "swap_out") != NULL);
    EXPECT_ERROR(swap_in(engine, tensor, "missing"), TSW_ERR_NOT_FOUND, "swap_in missing");
    EXPECT(file_len("missing") == -1);
    EXPECT_ERROR(swap_in(engine, tensor, "."), TSW_ERR_INVALID_ARGUMENT, "EISDIR");
    EXPECT_ERROR(swap_out(engine, tensor, "."), TSW_ERR_INVALID_ARGUMENT, "EISDIR");
    memset(long_name, 'n', sizeof long_name);
    long_name[sizeof long_name - 1] = '\0';
    EXPECT_ERROR(swap_out(engine, tensor, long_name), TSW_ERR_INVALID_ARGUMENT, "ENAMETOOLONG");

    EXPECT_STATUS(swap_out(engine, bytes_at(data, LEN - 1, 0), "short"), TSW_OK);
    EXPECT_ERROR(swap_in(engine, tensor, "short"), TSW_ERR_SIZE_MISMATCH, "short");
    EXPECT_STATUS(swap_in(engine, bytes_at(data, LEN - 1, 0), "short"), TSW_OK);
    EXPECT_STATUS(swap_in(engine, bytes_at(data, 1, LEN), "short"), TSW_ERR_SIZE_MISMATCH);
    EXPECT_STATUS(swap_out(engine, bytes_at(NULL, 0, 0), "nothing"), TSW_OK);
    EXPECT_STATUS(swap_in(engine, bytes_at(data, 1, 0), "nothing"), TSW_ERR_SIZE_MISMATCH);
    EXPECT_STATUS(swap_out(engine, tensor, "short/below"), TSW_ERR_NOT_FOUND); /* ENOTDIR */
    EXPECT(tsw_last_error_os() == ENOTDIR);
}

/* One of a list fails: the completion tells which, and the others are done. */
static void one_of_several(tsw_engine *engine)
{
    tsw_tensor tensors[3] = {bytes_at(data, LEN, 0), bytes_at(data, LEN, 0), bytes_at(data, LEN, 0)};
    const char *paths[3] = {"first", "no-directory/second", "third"};
    tsw_completion completion = {.struct_size = sizeof completion};
    tsw_ticket ticket;

    for (unsigned i = 0; i < 3; i++)
        tensors[i].user_tag = 70 + i;
    check(tsw_engine_swap_out(engine, tensors, paths, 3, &ticket), "swap out");
    EXPECT_STATUS(tsw_ticket_wait(engine, ticket, TSW_WAIT_FOREVER, &completion),
                  TSW_ERR_NOT_FOUND);
    EXPECT(completion.status == TSW_ERR_NOT_FOUND && completion.os_error == ENOENT);
    EXPECT(completion.failed_index == 1 && completion.user_tag == 71);
    EXPECT(completion.ticket == ticket && completion.elapsed_ns > 0);
    EXPECT(strstr(completion.message, "no-directory/second") != NULL);
}

/* A failed write is reported by every later read of its path until it is written again. */
static void sticky(tsw_engine *engine)
{
    const tsw_tensor tensor = bytes_at(data, LEN, 0);

    EXPECT_STATUS(swap_out(engine, tensor, "later/file"), TSW_ERR_NOT_FOUND);
    EXPECT(mkdir("later", 0700) == 0);
    EXPECT_STATUS(swap_in(engine, tensor, "later/file"), TSW_ERR_NOT_FOUND);
    EXPECT_STATUS(swap_in(engine, tensor, "later/file"), TSW_ERR_NOT_FOUND);
    EXPECT_STATUS(swap_out(engine, tensor, "later/file"), TSW_OK);
    EXPECT_STATUS(swap_in(engine, tensor, "later/file"), TSW_OK);
}

/* What the swapper could not write comes out of the flush, once, and of a read of that path. */
static void staged(tsw_engine *engine)
{
    const tsw_tensor tensor = bytes_at(data, LEN, 0);
    const char *bad = "nowhere/staged", *good = "staged";
    tsw_swapper_stats stats = {.struct_size = sizeof stats};
    tsw_swapper *swapper;
    tsw_buffer *buffer, *back[1];
    size_t count;

    check(tsw_swapper_new(engine, NULL, &swapper), "swapper");
    check(tsw_buffer_new(engine, 1 << 16, &buffer), "buffer");
    check(tsw_swapper_add_buffers(swapper, &buffer, 1, TSW_BYTES), "add");
    EXPECT_STATUS(tsw_swapper_swap_in(swapper, &tensor, &good, 1), TSW_ERR_NOT_FOUND);

    EXPECT_STATUS(tsw_swapper_swap_out(swapper, &tensor, &good, 1), TSW_OK);
    if (tsw_swapper_swap_out(swapper, &tensor, &bad, 1) == TSW_OK)
        EXPECT_ERROR(tsw_swapper_flush(swapper, TSW_WAIT_FOREVER), TSW_ERR_NOT_FOUND,
                     "nowhere/staged");
    EXPECT_STATUS(tsw_swapper_swap_in(swapper, &tensor, &bad, 1), TSW_ERR_NOT_FOUND);
    EXPECT_STATUS(tsw_swapper_swap_in(swapper, &tensor, &good, 1), TSW_OK);
    EXPECT_STATUS(tsw_swapper_get_stats(swapper, &stats), TSW_OK);
    EXPECT(stats.errors_count > 0);

    /* The buffers come back although the flush fails. */
    if (tsw_swapper_swap_out(swapper, &tensor, &bad, 1) == TSW_OK) {
        EXPECT_STATUS(tsw_swapper_release_buffers(swapper, back, 1, &count), TSW_ERR_NOT_FOUND);
        EXPECT(count == 1 && back[0] == buffer);
    }
    tsw_swapper_free(swapper);
    tsw_buffer_free(buffer);
}

int main(void)
{
    static const char *const backends[] = {"auto", "threads"};
    fill(data, LEN, 8);
    for (size_t i = 0; i < sizeof backends / sizeof backends[0]; i++) {
        char *name = path_in(".", "%s", backends[i]);
        tsw_engine *engine = new_engine("backend", backends[i]);
        if (mkdir(name, 0700) != 0 || chdir(name) != 0)
            fail(name, strerror(errno));
        direct(engine);
        one_of_several(engine);
        sticky(engine);
        staged(engine);
        tsw_engine_free(engine);
        if (chdir("..") != 0)
            fail("..", strerror(errno));
        free(name);
    }
    return result();
}
