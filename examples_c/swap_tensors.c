/* The shortest honest use: four tensors go out to storage through pinned buffers, their memory is
 * used for something else at once, and they come back.
 *
 *     swap_tensors [DIRECTORY]      default: a temporary one here, removed at the end */
#include "example.h"

enum { TENSORS = 4, NUMEL = 300000, BUFFERS = 2, BUFFER_BYTES = 1 << 20 };

int main(int argc, char **argv)
{
    const char *directory = argc > 1 ? argv[1] : temporary_directory(".");
    tsw_engine *engine;
    tsw_swapper *swapper;
    tsw_buffer *buffers[BUFFERS];
    tsw_tensor tensors[TENSORS] = {0}; /* what is reserved must be zero */
    char *paths[TENSORS];
    int wrong = 0;

    /* The engine does the I/O; the swapper stages tensors in the buffers it is lent. */
    check(tsw_engine_new(NULL, &engine), "engine");
    check(tsw_swapper_new(engine, NULL, &swapper), "swapper");
    for (int i = 0; i < BUFFERS; i++)
        check(tsw_buffer_new(engine, BUFFER_BYTES, &buffers[i]), "pinned buffer");
    check(tsw_swapper_add_buffers(swapper, buffers, BUFFERS, TSW_F32), "add buffers");

    for (int i = 0; i < TENSORS; i++) {
        float *values = check_memory(malloc(NUMEL * sizeof *values));
        for (int j = 0; j < NUMEL; j++)
            values[j] = (float)(i * NUMEL + j);
        tensors[i].data = values;
        tensors[i].numel = NUMEL;
        tensors[i].dtype = TSW_F32;
        paths[i] = path_in(directory, "tensor%d", i);
    }

    /* Out. When this returns the tensors are staged and their memory is ours again; the writes go
     * on in the background. Their errors, if any, come out of the flush. */
    check(tsw_swapper_swap_out(swapper, tensors, (const char *const *)paths, TENSORS), "swap out");
    for (int i = 0; i < TENSORS; i++)
        memset(tensors[i].data, 0xff, NUMEL * sizeof(float));
    check(tsw_swapper_flush(swapper, TSW_WAIT_FOREVER), "flush");

    /* And in: the data is there when this returns. */
    check(tsw_swapper_swap_in(swapper, tensors, (const char *const *)paths, TENSORS), "swap in");
    for (int i = 0; i < TENSORS; i++) {
        const float *values = tensors[i].data;
        for (int j = 0; j < NUMEL; j++)
            wrong += values[j] != (float)(i * NUMEL + j);
    }
    printf("%d tensors of %d floats swapped out and in, %d wrong\n", TENSORS, NUMEL, wrong);

    tsw_swapper_free(swapper); /* any order is fine; it lets go of the buffers */
    for (int i = 0; i < BUFFERS; i++)
        tsw_buffer_free(buffers[i]);
    tsw_engine_free(engine);
    for (int i = 0; i < TENSORS; i++) {
        free(tensors[i].data);
        free(paths[i]);
    }
    return wrong == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
