/* The optimizer used wrongly: a clear status each time, with words that help, and the object works
 * afterwards. */
#include "optimizer.h"

enum { A = 10, B = 20, C = 30, NUMEL = 5000 };

static tsw_optimizer *new_store(tsw_engine *engine)
{
    tsw_optimizer *optimizer;
    check(open_store(engine, &optimizer, "store", "new", NULL), "store");
    add_states(optimizer, TSW_F32, TSW_F32);
    check(tsw_optimizer_add_parameter(optimizer, A, "layer.a", NUMEL), "parameter");
    check(tsw_optimizer_add_parameter(optimizer, B, "layer.b", NUMEL), "parameter");
    check(tsw_optimizer_add_parameter(optimizer, C, NULL, 1), "parameter");
    return optimizer;
}

static void making(tsw_engine *engine)
{
    tsw_config *config = check_memory(tsw_config_new());
    tsw_optimizer *optimizer, *second;

    EXPECT_ERROR(tsw_optimizer_new(engine, NULL, &optimizer), TSW_ERR_CONFIG, "path");
    EXPECT(optimizer == NULL);
    EXPECT_STATUS(tsw_optimizer_new(engine, config, &optimizer), TSW_ERR_CONFIG);
    tsw_config_free(config);
    EXPECT_ERROR(open_store(engine, &optimizer, "store", "existing", NULL), TSW_ERR_NOT_FOUND,
                 "store");

    check(open_store(engine, &optimizer, NULL), "store");
    EXPECT_ERROR(open_store(engine, &second, NULL), TSW_ERR_LOCKED, "rank0");
    EXPECT(second == NULL);
    EXPECT_STATUS(open_store(engine, &second, "store", "new", NULL), TSW_ERR_LOCKED);
    EXPECT_STATUS(open_store(engine, &second, "rank", "1", NULL), TSW_OK); /* another store */
    tsw_optimizer_free(second);
    tsw_optimizer_free(optimizer);
    EXPECT_STATUS(open_store(engine, &optimizer, NULL), TSW_OK); /* the lock is gone */
    tsw_optimizer_free(optimizer);
}

static void registering(tsw_engine *engine)
{
    char long_name[5000];
    tsw_optimizer *optimizer;

    memset(long_name, 'x', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = '\0';
    check(open_store(engine, &optimizer, "store", "new", NULL), "store");
    EXPECT_STATUS(tsw_optimizer_add_parameter(optimizer, A, NULL, 10), TSW_ERR_INVALID_ARGUMENT);
    EXPECT_STATUS(tsw_optimizer_add_state(optimizer, "master", TSW_F32, 99),
                  TSW_ERR_INVALID_ARGUMENT);
    EXPECT_STATUS(tsw_optimizer_add_state(optimizer, "master", 99, TSW_F32),
                  TSW_ERR_INVALID_ARGUMENT);
    EXPECT_ERROR(tsw_optimizer_add_state(optimizer, "\xff", TSW_F32, TSW_F32),
                 TSW_ERR_INVALID_ARGUMENT, "UTF-8");
    EXPECT_ERROR(tsw_optimizer_add_state(optimizer, "master", TSW_I32, TSW_I32),
                 TSW_ERR_UNSUPPORTED, "i32");
    EXPECT_STATUS(tsw_optimizer_add_state(optimizer, "master", TSW_F32, TSW_I8),
                  TSW_ERR_UNSUPPORTED);
    EXPECT_STATUS(tsw_optimizer_add_state(optimizer, "master", TSW_F32, TSW_F32), TSW_OK);
    EXPECT_ERROR(tsw_optimizer_add_state(optimizer, "master", TSW_F32, TSW_F32),
                 TSW_ERR_INVALID_ARGUMENT, "master");
    EXPECT_STATUS(tsw_optimizer_add_state(optimizer, long_name, TSW_F32, TSW_F32),
                  TSW_ERR_INVALID_ARGUMENT);
    for (int i = 1; i < TSW_STATES_MAX; i++) {
        char name[2] = {(char)('0' + i), '\0'};
        EXPECT_STATUS(tsw_optimizer_add_state(optimizer, name, TSW_F32, TSW_BF16), TSW_OK);
    }
    EXPECT_STATUS(tsw_optimizer_add_state(optimizer, "ninth", TSW_F32, TSW_F32),
                  TSW_ERR_INVALID_ARGUMENT);

    EXPECT_STATUS(tsw_optimizer_add_parameter(optimizer, TSW_NO_PARAMETER, NULL, 10),
                  TSW_ERR_INVALID_ARGUMENT);
    EXPECT_STATUS(tsw_optimizer_add_parameter(optimizer, A, NULL, 0), TSW_ERR_INVALID_ARGUMENT);
    EXPECT_STATUS(tsw_optimizer_add_parameter(optimizer, A, NULL, UINT64_MAX / 2),
                  TSW_ERR_INVALID_ARGUMENT);
    EXPECT_STATUS(tsw_optimizer_add_parameter(optimizer, A, long_name, 10),
                  TSW_ERR_INVALID_ARGUMENT);
    EXPECT_STATUS(tsw_optimizer_add_parameter(optimizer, A, "name", 10), TSW_OK);
    EXPECT_ERROR(tsw_optimizer_add_parameter(optimizer, A, "name", 10), TSW_ERR_INVALID_ARGUMENT,
                 "10");
    EXPECT_STATUS(tsw_optimizer_add_state(optimizer, "late", TSW_F32, TSW_F32),
                  TSW_ERR_INVALID_ARGUMENT);
    EXPECT(tsw_optimizer_parameters_len(optimizer) == 1);
    EXPECT_USABLE(optimizer);
    tsw_optimizer_free(optimizer);
}

/* What is recorded is not what is asked for: both are told. */
static void reopening(tsw_engine *engine)
{
    tsw_optimizer *optimizer = new_store(engine);

    EXPECT_STATUS(tsw_optimizer_commit(optimizer), TSW_OK);
    tsw_optimizer_free(optimizer);

    check(open_store(engine, &optimizer, "store", "existing", NULL), "store");
    EXPECT_ERROR(tsw_optimizer_add_state(optimizer, "weight", TSW_F32, TSW_F32),
                 TSW_ERR_SIZE_MISMATCH, "weight");
    EXPECT(strstr(last_message(), "master") != NULL);
    EXPECT_ERROR(tsw_optimizer_add_state(optimizer, "master", TSW_F32, TSW_BF16),
                 TSW_ERR_SIZE_MISMATCH, "bf16");
    EXPECT(strstr(last_message(), "f32") != NULL);
    EXPECT_STATUS(tsw_optimizer_add_state(optimizer, "master", TSW_F32, TSW_F32), TSW_OK);
    EXPECT_ERROR(tsw_optimizer_add_parameter(optimizer, A, "layer.a", NUMEL),
                 TSW_ERR_SIZE_MISMATCH, "3");
    EXPECT_STATUS(tsw_optimizer_add_state(optimizer, "exp_avg", TSW_F32, TSW_F32), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_add_state(optimizer, "exp_avg_sq", TSW_F32, TSW_F32), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_add_state(optimizer, "more", TSW_F32, TSW_F32),
                  TSW_ERR_SIZE_MISMATCH);
    EXPECT_ERROR(tsw_optimizer_add_parameter(optimizer, A, "layer.a", NUMEL + 1),
                 TSW_ERR_SIZE_MISMATCH, "5001");
    EXPECT(strstr(last_message(), "5000") != NULL);

    /* All are recorded, none is registered in this run. */
    EXPECT(tsw_optimizer_parameters_len(optimizer) == 3);
    EXPECT_STATUS(tsw_optimizer_release_state(optimizer, A), TSW_ERR_UNKNOWN_PARAMETER);
    EXPECT_STATUS(tsw_optimizer_add_parameter(optimizer, A, "layer.a", NUMEL), TSW_OK);
    EXPECT_USABLE(optimizer);
    tsw_optimizer_free(optimizer);
}

static void lists(tsw_optimizer *optimizer)
{
    const uint64_t twice[2] = {A, A}, unknown[2] = {A, 99};
    float *values = new_values(1, NUMEL), *zeros = new_floats(NUMEL);
    tsw_tensor tensors[2] = {floats(values, NUMEL), floats(values, NUMEL)};
    tsw_partition pieces[2] = {{.param_id = A, .tensor = tensors[0]},
                               {.param_id = A, .offset = 4000, .tensor = tensors[0]}};

    EXPECT_STATUS(tsw_optimizer_initialize_parameters(optimizer, unknown, tensors, 2),
                  TSW_ERR_UNKNOWN_PARAMETER);
    tensors[1].numel = NUMEL - 1;
    EXPECT_STATUS(tsw_optimizer_initialize_parameters(optimizer, twice, tensors, 2),
                  TSW_ERR_INVALID_ARGUMENT);
    tensors[1] = tensors[0];
    tensors[1].reserved[0] = 1;
    EXPECT_ERROR(tsw_optimizer_initialize_parameters(optimizer, twice, tensors, 2),
                 TSW_ERR_INVALID_ARGUMENT, "sources[1]");
    tensors[1] = tensors[0];
    tensors[1].dtype = TSW_I32;
    EXPECT_STATUS(tsw_optimizer_initialize_parameters(optimizer, twice + 1, tensors + 1, 1),
                  TSW_ERR_DTYPE_MISMATCH);
    EXPECT_STATUS(tsw_optimizer_initialize_parameters(optimizer, twice, tensors, SIZE_MAX),
                  TSW_ERR_NO_MEMORY);

    EXPECT_STATUS(tsw_optimizer_initialize_from_swapped(optimizer, pieces, 2),
                  TSW_ERR_INVALID_ARGUMENT); /* they overlap, and exceed it */
    pieces[0].tensor.numel = 3999;
    pieces[1].tensor.numel = 1000;
    EXPECT_ERROR(tsw_optimizer_initialize_from_swapped(optimizer, pieces, 2),
                 TSW_ERR_INVALID_ARGUMENT, "10"); /* a hole, in parameter 10 */
    pieces[0].tensor.numel = 4000;
    pieces[1].reserved[1] = 1;
    EXPECT_ERROR(tsw_optimizer_initialize_from_swapped(optimizer, pieces, 2),
                 TSW_ERR_INVALID_ARGUMENT, "partitions[1]");
    pieces[1].reserved[1] = 0;
    pieces[1].path = "missing";
    EXPECT_ERROR(tsw_optimizer_initialize_from_swapped(optimizer, pieces, 2), TSW_ERR_NOT_FOUND,
                 "missing");
    /* None of these has changed anything. */
    EXPECT(state_is(optimizer, A, MASTER, zeros, NUMEL));
    pieces[1].path = NULL;
    pieces[1].tensor.data = values + 4000;
    EXPECT_STATUS(tsw_optimizer_initialize_from_swapped(optimizer, pieces, 2), TSW_OK);
    EXPECT(state_is(optimizer, A, MASTER, values, NUMEL));
    EXPECT_USABLE(optimizer);
    free(values);
    free(zeros);
}

static void states_by_name(tsw_optimizer *optimizer)
{
    float *values = new_values(2, NUMEL);
    tsw_tensor tensor = floats(values, NUMEL);
    uint64_t id, numel;
    char *large = check_memory(calloc(1, TSW_USER_DATA_BYTES_MAX + 1));

    EXPECT_ERROR(tsw_optimizer_read_state(optimizer, A, "no such state", &tensor),
                 TSW_ERR_INVALID_ARGUMENT, "no such state");
    EXPECT_STATUS(tsw_optimizer_read_state(optimizer, 99, "master", &tensor),
                  TSW_ERR_UNKNOWN_PARAMETER);
    EXPECT_STATUS(tsw_optimizer_write_state(optimizer, 99, "master", &tensor),
                  TSW_ERR_UNKNOWN_PARAMETER);
    tensor.numel--;
    EXPECT_STATUS(tsw_optimizer_read_state(optimizer, A, "master", &tensor),
                  TSW_ERR_INVALID_ARGUMENT);
    EXPECT_STATUS(tsw_optimizer_write_state(optimizer, A, "master", &tensor),
                  TSW_ERR_INVALID_ARGUMENT);
    tensor.numel++;
    tensor.dtype = TSW_F64;
    EXPECT_STATUS(tsw_optimizer_write_state(optimizer, A, "master", &tensor),
                  TSW_ERR_DTYPE_MISMATCH);
    tensor.dtype = TSW_F32;
    EXPECT_STATUS(tsw_optimizer_write_state(optimizer, A, "exp_avg", &tensor), TSW_OK);
    EXPECT(state_is(optimizer, A, EXP_AVG, values, NUMEL));

    EXPECT_STATUS(tsw_optimizer_parameter_at(optimizer, 1, &id, &numel), TSW_OK);
    EXPECT(id == B && numel == NUMEL);
    EXPECT_STATUS(tsw_optimizer_parameter_at(optimizer, 3, &id, &numel), TSW_ERR_INVALID_ARGUMENT);
    EXPECT(id == TSW_NO_PARAMETER && numel == 0);

    EXPECT_STATUS(tsw_optimizer_set_user_data(optimizer, "kept", 4), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_set_user_data(optimizer, large, TSW_USER_DATA_BYTES_MAX + 1),
                  TSW_ERR_INVALID_ARGUMENT);
    EXPECT_STATUS(tsw_optimizer_set_user_data(optimizer, large, SIZE_MAX),
                  TSW_ERR_INVALID_ARGUMENT);
    EXPECT(tsw_optimizer_get_user_data(optimizer, large, 3) == 4 && strcmp(large, "kep") == 0);
    EXPECT_USABLE(optimizer);
    free(large);
    free(values);
}

static void gradients(tsw_optimizer *optimizer)
{
    float *values = new_values(3, NUMEL);
    tsw_tensor tensors[2] = {floats(values, 10), floats(values, 10)};
    uint64_t offsets[2] = {0, NUMEL - 9}, nonfinite;
    double sum;

    EXPECT_STATUS(tsw_optimizer_swap_out_gradients(optimizer, 99, offsets, tensors, 1),
                  TSW_ERR_UNKNOWN_PARAMETER);
    EXPECT_STATUS(tsw_optimizer_swap_out_gradients(optimizer, A, offsets, tensors, 2),
                  TSW_ERR_INVALID_ARGUMENT);
    offsets[1] = UINT64_MAX;
    EXPECT_STATUS(tsw_optimizer_swap_out_gradients(optimizer, A, offsets, tensors, 2),
                  TSW_ERR_INVALID_ARGUMENT);
    offsets[1] = 100;
    tensors[1].dtype = TSW_I32;
    EXPECT_STATUS(tsw_optimizer_swap_out_gradients(optimizer, A, offsets, tensors, 2),
                  TSW_ERR_DTYPE_MISMATCH);
    tensors[1].dtype = TSW_F32;
    tensors[1].flags = 64;
    EXPECT_STATUS(tsw_optimizer_swap_out_gradients(optimizer, A, offsets, tensors, 2),
                  TSW_ERR_INVALID_ARGUMENT);
    EXPECT_STATUS(tsw_optimizer_gradient_norm(optimizer, 99, &sum, &nonfinite),
                  TSW_ERR_UNKNOWN_PARAMETER);
    /* A list is taken whole or not at all. */
    EXPECT_STATUS(tsw_optimizer_gradient_norm(optimizer, A, &sum, &nonfinite), TSW_OK);
    EXPECT(!(sum > 0) && nonfinite == 0);
    EXPECT_USABLE(optimizer);
    free(values);
}

static void one_by_one(tsw_optimizer *optimizer)
{
    tsw_parameter_view view = {.struct_size = sizeof view}, small = view;

    EXPECT_STATUS(tsw_optimizer_swap_in_state(optimizer, 99, TSW_NO_PARAMETER, &view),
                  TSW_ERR_UNKNOWN_PARAMETER);
    EXPECT(view.id == TSW_NO_PARAMETER && view.states_len == 0);
    EXPECT_STATUS(tsw_optimizer_swap_in_state(optimizer, A, 99, &view), TSW_ERR_UNKNOWN_PARAMETER);
    small.struct_size = 7;
    EXPECT_ERROR(tsw_optimizer_swap_in_state(optimizer, A, TSW_NO_PARAMETER, &small),
                 TSW_ERR_INVALID_ARGUMENT, "struct_size");
    EXPECT_STATUS(tsw_optimizer_swap_out_state(optimizer, A, 0), TSW_ERR_BUSY);
    EXPECT_STATUS(tsw_optimizer_release_state(optimizer, A), TSW_ERR_BUSY);
    EXPECT_STATUS(tsw_optimizer_swap_out_state(optimizer, 99, 0), TSW_ERR_UNKNOWN_PARAMETER);

    EXPECT_STATUS(tsw_optimizer_swap_in_state(optimizer, A, B, &view), TSW_OK);
    EXPECT(view.id == A && view.numel == NUMEL && view.states_len == STATES);
    EXPECT(view.gradient.data == NULL);
    EXPECT_ERROR(tsw_optimizer_swap_in_state(optimizer, A, TSW_NO_PARAMETER, &view), TSW_ERR_BUSY,
                 "10");
    EXPECT_ERROR(tsw_optimizer_swap_in_state(optimizer, C, TSW_NO_PARAMETER, &view), TSW_ERR_BUSY,
                 "20"); /* B was announced */
    EXPECT_ERROR(tsw_optimizer_swap_out_state(optimizer, A, 2), TSW_ERR_INVALID_ARGUMENT, "async");
    EXPECT_STATUS(tsw_optimizer_step_begin(optimizer, NULL, 0), TSW_ERR_BUSY);
    EXPECT_STATUS(tsw_optimizer_commit(optimizer), TSW_ERR_BUSY);
    EXPECT_STATUS(tsw_optimizer_swap_out_state(optimizer, A, 1), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_swap_out_state(optimizer, A, 1), TSW_ERR_BUSY);
    EXPECT_STATUS(tsw_optimizer_release_state(optimizer, B), TSW_OK); /* not wanted after all */

    /* views_max is 2. */
    EXPECT_STATUS(tsw_optimizer_swap_in_state(optimizer, A, TSW_NO_PARAMETER, &view), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_swap_in_state(optimizer, B, TSW_NO_PARAMETER, &view), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_swap_in_state(optimizer, C, TSW_NO_PARAMETER, &view),
                  TSW_ERR_NO_BUFFERS);
    EXPECT_STATUS(tsw_optimizer_release_state(optimizer, B), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_swap_out_state(optimizer, A, 0), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_commit(optimizer), TSW_OK);
    EXPECT_USABLE(optimizer);
}

static void steps(tsw_optimizer *optimizer)
{
    tsw_parameter_view view = {.struct_size = sizeof view}, second = view, third = view;
    const uint64_t unknown[2] = {A, 99}, twice[2] = {A, A}, two[2] = {A, B};
    const uint64_t before = tsw_optimizer_step_number(optimizer);

    EXPECT_STATUS(tsw_optimizer_step_next(optimizer, &view), TSW_ERR_BUSY);
    EXPECT(view.id == TSW_NO_PARAMETER);
    EXPECT_STATUS(tsw_optimizer_step_done(optimizer, A, 1), TSW_ERR_BUSY);
    EXPECT_STATUS(tsw_optimizer_step_end(optimizer), TSW_ERR_BUSY);
    EXPECT_STATUS(tsw_optimizer_step_abort(optimizer), TSW_ERR_BUSY);
    EXPECT_STATUS(tsw_optimizer_step_begin(optimizer, unknown, 2), TSW_ERR_UNKNOWN_PARAMETER);
    EXPECT_STATUS(tsw_optimizer_step_begin(optimizer, twice, 2), TSW_ERR_INVALID_ARGUMENT);

    EXPECT_STATUS(tsw_optimizer_step_begin(optimizer, two, 2), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_step_begin(optimizer, two, 2), TSW_ERR_BUSY);
    EXPECT_STATUS(tsw_optimizer_swap_in_state(optimizer, C, TSW_NO_PARAMETER, &view),
                  TSW_ERR_BUSY);
    EXPECT_STATUS(tsw_optimizer_commit(optimizer), TSW_ERR_BUSY);
    EXPECT_STATUS(tsw_optimizer_purge_state(optimizer), TSW_ERR_BUSY);
    EXPECT_STATUS(tsw_optimizer_step_end(optimizer), TSW_ERR_BUSY); /* before the end */
    EXPECT_STATUS(tsw_optimizer_step_next(optimizer, &view), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_step_next(optimizer, &second), TSW_OK);
    EXPECT(view.id + second.id == A + B);
    EXPECT_STATUS(tsw_optimizer_step_next(optimizer, &third), TSW_END);
    EXPECT(third.id == TSW_NO_PARAMETER && third.states_len == 0);
    EXPECT_STATUS(tsw_optimizer_step_end(optimizer), TSW_ERR_BUSY); /* views are out */
    EXPECT_ERROR(tsw_optimizer_step_done(optimizer, view.id, 2), TSW_ERR_INVALID_ARGUMENT,
                 "changed");
    EXPECT_STATUS(tsw_optimizer_step_done(optimizer, 99, 1), TSW_ERR_UNKNOWN_PARAMETER);
    EXPECT_STATUS(tsw_optimizer_step_done(optimizer, view.id, 1), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_step_done(optimizer, view.id, 1), TSW_ERR_BUSY);
    EXPECT_STATUS(tsw_optimizer_step_done(optimizer, second.id, 0), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_step_next(optimizer, &third), TSW_END);
    EXPECT_STATUS(tsw_optimizer_step_end(optimizer), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_step_next(optimizer, &third), TSW_ERR_BUSY);
    EXPECT(tsw_optimizer_step_number(optimizer) == before + 1);
    EXPECT_USABLE(optimizer);
}

/* The third view is refused at once, and can be had when one came back. */
static void too_many_views(tsw_optimizer *optimizer)
{
    tsw_parameter_view views[3] = {{.struct_size = sizeof views[0]},
                                   {.struct_size = sizeof views[0]},
                                   {.struct_size = sizeof views[0]}};

    EXPECT_STATUS(tsw_optimizer_step_begin(optimizer, NULL, 0), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_step_next(optimizer, &views[0]), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_step_next(optimizer, &views[1]), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_step_next(optimizer, &views[2]), TSW_ERR_NO_BUFFERS);
    EXPECT_STATUS(tsw_optimizer_step_done(optimizer, views[0].id, 0), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_step_next(optimizer, &views[2]), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_step_done(optimizer, views[1].id, 0), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_step_done(optimizer, views[2].id, 0), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_step_next(optimizer, &views[2]), TSW_END);
    EXPECT_STATUS(tsw_optimizer_step_end(optimizer), TSW_OK);
}

static void aborting(tsw_optimizer *optimizer)
{
    tsw_parameter_view view = {.struct_size = sizeof view}, second = view;
    float *values = new_values(4, NUMEL);
    const tsw_tensor source = floats(values, NUMEL);
    uint64_t before, nonfinite;
    double sum;

    EXPECT_STATUS(tsw_optimizer_initialize_parameters(optimizer, &(uint64_t){A}, &source, 1),
                  TSW_OK);
    EXPECT_STATUS(tsw_optimizer_initialize_parameters(optimizer, &(uint64_t){B}, &source, 1),
                  TSW_OK);
    EXPECT_STATUS(tsw_optimizer_commit(optimizer), TSW_OK);
    before = tsw_optimizer_step_number(optimizer);
    EXPECT_STATUS(put_gradient(optimizer, A, values, NUMEL), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_step_begin(optimizer, NULL, 0), TSW_OK);
    for (int i = 0; i < 2; i++) {
        EXPECT_STATUS(tsw_optimizer_step_next(optimizer, &view), TSW_OK);
        memset(view.states[MASTER].data, 0x77, view.numel * sizeof(float));
        if (i == 0)
            EXPECT_STATUS(tsw_optimizer_step_done(optimizer, view.id, 1), TSW_OK);
    }
    EXPECT_STATUS(tsw_optimizer_step_abort(optimizer), TSW_ERR_BUSY);
    EXPECT_STATUS(tsw_optimizer_step_next(optimizer, &second), TSW_ERR_CANCELLED);
    EXPECT_STATUS(tsw_optimizer_step_done(optimizer, view.id, 1), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_step_abort(optimizer), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_step_abort(optimizer), TSW_ERR_BUSY); /* no step is open */
    EXPECT(tsw_optimizer_step_number(optimizer) == before);
    EXPECT(state_is(optimizer, A, MASTER, values, NUMEL));
    EXPECT(state_is(optimizer, B, MASTER, values, NUMEL));
    EXPECT_STATUS(tsw_optimizer_gradient_norm(optimizer, A, &sum, &nonfinite), TSW_OK);
    EXPECT(!(sum > 0));
    EXPECT_USABLE(optimizer);
    free(values);
}

/* The message names the bytes that would do, and they do. */
static void budget(tsw_engine *engine)
{
    tsw_parameter_view view = {.struct_size = sizeof view};
    tsw_optimizer *optimizer;
    char needed[32] = "";
    const char *digit;

    check(open_store(engine, &optimizer, "store", "new", "pinned_bytes", "4096", NULL), "store");
    add_states(optimizer, TSW_F32, TSW_F32);
    check(tsw_optimizer_add_parameter(optimizer, A, NULL, 300000), "parameter");
    EXPECT_STATUS(tsw_optimizer_swap_in_state(optimizer, A, TSW_NO_PARAMETER, &view),
                  TSW_ERR_BUDGET);
    EXPECT_STATUS(tsw_optimizer_step_begin(optimizer, NULL, 0), TSW_ERR_BUDGET);
    /* The largest number in the message. */
    for (digit = last_message(); *digit != '\0'; digit++) {
        const size_t len = strspn(digit, "0123456789");
        if (len > strlen(needed) && len < sizeof needed) {
            memcpy(needed, digit, len);
            needed[len] = '\0';
        }
        digit += len > 0 ? len - 1 : 0;
    }
    EXPECT(strtoull(needed, NULL, 10) >= 3 * 300000 * sizeof(float));
    tsw_optimizer_free(optimizer);

    check(open_store(engine, &optimizer, "store", "new", "pinned_bytes", needed, NULL), "store");
    add_states(optimizer, TSW_F32, TSW_F32);
    check(tsw_optimizer_add_parameter(optimizer, A, NULL, 300000), "parameter");
    EXPECT_USABLE(optimizer);
    tsw_optimizer_free(optimizer);
}

/* Everything is refused, nothing hangs, and it can be freed. */
static void after_shutdown(void)
{
    tsw_engine *engine = new_engine(NULL, NULL);
    tsw_optimizer *optimizer = new_store(engine);
    tsw_parameter_view view = {.struct_size = sizeof view};
    float values[10] = {0};

    EXPECT_USABLE(optimizer);
    EXPECT_STATUS(tsw_optimizer_commit(optimizer), TSW_OK);
    EXPECT_STATUS(put_gradient(optimizer, A, values, 10), TSW_OK);
    EXPECT_STATUS(tsw_engine_shutdown(engine, TSW_WAIT_FOREVER), TSW_OK);
    /* It is zero and needs no read; but what was changed cannot be written any more. */
    EXPECT_STATUS(tsw_optimizer_swap_in_state(optimizer, A, TSW_NO_PARAMETER, &view), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_swap_out_state(optimizer, A, 0), TSW_ERR_SHUT_DOWN);
    EXPECT_STATUS(tsw_optimizer_commit(optimizer), TSW_ERR_SHUT_DOWN);
    tsw_engine_free(engine);
    tsw_optimizer_free(optimizer);
}

int main(void)
{
    tsw_engine *engine = new_engine(NULL, NULL);
    tsw_optimizer *optimizer;

    making(engine);
    registering(engine);
    reopening(engine);
    optimizer = new_store(engine);
    lists(optimizer);
    states_by_name(optimizer);
    gradients(optimizer);
    one_by_one(optimizer);
    steps(optimizer);
    too_many_views(optimizer);
    aborting(optimizer);
    tsw_optimizer_free(optimizer);
    budget(engine);
    tsw_engine_free(engine);
    after_shutdown();
    return result();
}
