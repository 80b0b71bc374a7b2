/* Tensors and lists that cannot be: each is refused before anything starts. */
#include "test.h"

static char data[8192];

static tsw_status submit(tsw_engine *engine, tsw_tensor tensor)
{
    const char *path = "never";
    tsw_ticket ticket = 7;
    tsw_status in = tsw_engine_swap_in(engine, &tensor, &path, 1, &ticket), out;
    EXPECT(ticket == 0);
    ticket = 7;
    out = tsw_engine_swap_out(engine, &tensor, &path, 1, &ticket);
    EXPECT(ticket == 0 && in == out);
    return out;
}

static void fields(tsw_engine *engine)
{
    const tsw_tensor good = bytes_at(data, sizeof data, 0);
    tsw_tensor tensor;

    for (int i = 0; i < 3; i++) {
        tensor = good;
        tensor.reserved[i] = 1;
        EXPECT_ERROR(submit(engine, tensor), TSW_ERR_INVALID_ARGUMENT, "reserved");
    }
    tensor = good;
    tensor.dtype = 16;
    EXPECT_ERROR(submit(engine, tensor), TSW_ERR_INVALID_ARGUMENT, "tensors[0]: 16 is no dtype");
    tensor.dtype = UINT32_MAX;
    EXPECT_STATUS(submit(engine, tensor), TSW_ERR_INVALID_ARGUMENT);
    tensor = good;
    tensor.flags = 4;
    EXPECT_ERROR(submit(engine, tensor), TSW_ERR_INVALID_ARGUMENT, "flags");
    tensor.flags = UINT32_MAX;
    EXPECT_STATUS(submit(engine, tensor), TSW_ERR_INVALID_ARGUMENT);
    tensor = good;
    tensor.data = NULL;
    EXPECT_STATUS(submit(engine, tensor), TSW_ERR_NULL_ARGUMENT);
}

static void sizes(tsw_engine *engine)
{
    tsw_tensor tensor = bytes_at(data, UINT64_MAX, 0);

    EXPECT_ERROR(submit(engine, tensor), TSW_ERR_INVALID_ARGUMENT, "too many");
    tensor.dtype = TSW_F64;
    tensor.numel = UINT64_MAX / 8 + 2; /* 8 bytes, if the product wrapped */
    EXPECT_STATUS(submit(engine, tensor), TSW_ERR_INVALID_ARGUMENT);
    tensor.numel = (uint64_t)1 << 60;
    EXPECT_STATUS(submit(engine, tensor), TSW_ERR_INVALID_ARGUMENT);
    tensor = bytes_at((void *)(UINTPTR_MAX - 10), 100, 0);
    EXPECT_ERROR(submit(engine, tensor), TSW_ERR_INVALID_ARGUMENT, "address space");
    tensor = bytes_at(data, sizeof data, UINT64_MAX);
    EXPECT_ERROR(submit(engine, tensor), TSW_ERR_INVALID_ARGUMENT, "offset");
    tensor = bytes_at(data, sizeof data, INT64_MAX - 100);
    EXPECT_STATUS(submit(engine, tensor), TSW_ERR_INVALID_ARGUMENT);
}

static void lists(tsw_engine *engine)
{
    tsw_tensor tensors[3] = {bytes_at(data, 4096, 0), bytes_at(data, 4096, 8192),
                             bytes_at(data, 100, 4095)};
    const char *same[3] = {"list", "list", "list"}, *others[3] = {"list", "list", "other"};
    const char *empty[1] = {""};
    tsw_ticket ticket = 7;

    EXPECT_ERROR(tsw_engine_swap_out(engine, tensors, same, 3, &ticket), TSW_ERR_INVALID_ARGUMENT,
                 "overlap");
    EXPECT(ticket == 0 && file_len("list") == -1);
    EXPECT_STATUS(tsw_engine_swap_out(engine, tensors, same, 2, &ticket), TSW_OK);
    EXPECT_STATUS(tsw_ticket_wait(engine, ticket, TSW_WAIT_FOREVER, NULL), TSW_OK);
    EXPECT(file_len("list") == 12288);
    EXPECT_STATUS(tsw_engine_swap_out(engine, tensors, others, 3, &ticket), TSW_OK);
    EXPECT_STATUS(tsw_ticket_wait(engine, ticket, TSW_WAIT_FOREVER, NULL), TSW_OK);
    EXPECT(file_len("other") == 4195);
    EXPECT_STATUS(tsw_engine_swap_out(engine, tensors, empty, 1, &ticket),
                  TSW_ERR_INVALID_ARGUMENT);
    EXPECT(ticket == 0);
    EXPECT_STATUS(tsw_engine_swap_out(engine, tensors, same, SIZE_MAX, &ticket),
                  TSW_ERR_NO_MEMORY);
    EXPECT_STATUS(tsw_engine_swap_in(engine, tensors, same, SIZE_MAX / 64, &ticket),
                  TSW_ERR_NO_MEMORY);
    EXPECT(ticket == 0);
}

static void nothing(tsw_engine *engine)
{
    tsw_completion completion = {.struct_size = sizeof completion};
    tsw_ticket ticket = 0;

    /* An empty list completes at once. */
    EXPECT_STATUS(tsw_engine_swap_out(engine, NULL, NULL, 0, &ticket), TSW_OK);
    EXPECT(ticket != 0);
    EXPECT_STATUS(tsw_ticket_wait(engine, ticket, TSW_WAIT_FOREVER, &completion), TSW_OK);
    EXPECT(completion.bytes_done == 0 && completion.user_tag == 0);
    EXPECT_STATUS(tsw_engine_swap_in(engine, NULL, NULL, 0, &ticket), TSW_OK);
    EXPECT_STATUS(tsw_ticket_wait(engine, ticket, TSW_WAIT_FOREVER, NULL), TSW_OK);

    /* A tensor without elements needs no memory; out, it makes the file and sets its length. */
    EXPECT_STATUS(swap_out(engine, bytes_at(data, 100, 0), "empty"), TSW_OK);
    EXPECT(file_len("empty") == 100);
    EXPECT_STATUS(swap_out(engine, bytes_at(NULL, 0, 0), "empty"), TSW_OK);
    EXPECT(file_len("empty") == 0);
    EXPECT_STATUS(swap_in(engine, bytes_at(NULL, 0, 0), "empty"), TSW_OK);
    EXPECT_STATUS(swap_out(engine, bytes_at(NULL, 0, 0), "new"), TSW_OK);
    EXPECT(file_len("new") == 0);
}

static void long_paths(tsw_engine *engine)
{
    tsw_completion completion = {.struct_size = sizeof completion};
    const tsw_tensor tensor = bytes_at(data, sizeof data, 0);
    char *path = check_memory(malloc(10001));
    const char *const paths[1] = {path};
    tsw_ticket ticket;

    memset(path, 'x', 10000);
    memcpy(path + 10000 - 8, "/the-end", 9);
    EXPECT_STATUS(tsw_engine_swap_out(engine, &tensor, paths, 1, &ticket), TSW_OK);
    EXPECT_ERROR(tsw_ticket_wait(engine, ticket, TSW_WAIT_FOREVER, &completion),
                 TSW_ERR_INVALID_ARGUMENT, "ENAMETOOLONG");
    EXPECT(strlen(last_message()) > 10000 && tsw_last_error_os() == ENAMETOOLONG);
    EXPECT(completion.os_error == ENAMETOOLONG && completion.failed_index == 0);
    EXPECT(strncmp(completion.message, "swap_out ...xx", 14) == 0);
    EXPECT(strstr(completion.message, "/the-end") != NULL);
    EXPECT(strstr(completion.message, "ENAMETOOLONG") != NULL);
    EXPECT(strlen(completion.message) < sizeof completion.message);
    {
        char small[16];
        const size_t needed = tsw_last_error_message(small, sizeof small);
        EXPECT(needed > 10000 && strlen(small) == sizeof small - 1);
        EXPECT(tsw_last_error_message(NULL, 0) == needed);
    }
    free(path);
}

int main(void)
{
    tsw_engine *engine = new_engine(NULL, NULL);

    fields(engine);
    sizes(engine);
    EXPECT(file_len("never") == -1);
    lists(engine);
    nothing(engine);
    long_paths(engine);
    tsw_engine_free(engine);
    return result();
}
