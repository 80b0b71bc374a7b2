/* NULL for every pointer of every function of the optimizer: a status that names the argument, or
 * 0; outputs are cleared. */
#include "optimizer.h"

#define EXPECT_NULL(call, argument) EXPECT_ERROR(call, TSW_ERR_NULL_ARGUMENT, argument " is NULL")

static void no_object(void)
{
    tsw_optimizer *optimizer = (tsw_optimizer *)&failures;
    tsw_parameter_view view = {.struct_size = sizeof view, .numel = 7};
    tsw_optimizer_stats stats = {.struct_size = sizeof stats, .steps_count = 7};
    tsw_timer timer = {.struct_size = sizeof timer, .count = 7};
    uint64_t id = 7, numel = 7, nonfinite = 7;
    double sum = 7;
    char byte = 7;
    const char *name = "before";

    EXPECT_NULL(tsw_optimizer_new(NULL, NULL, &optimizer), "engine");
    EXPECT(optimizer == NULL);
    EXPECT_NULL(tsw_optimizer_add_state(NULL, "a", TSW_F32, TSW_F32), "optimizer");
    EXPECT_NULL(tsw_optimizer_add_parameter(NULL, 1, NULL, 1), "optimizer");
    EXPECT_NULL(tsw_optimizer_initialize_parameters(NULL, NULL, NULL, 0), "optimizer");
    EXPECT_NULL(tsw_optimizer_initialize_from_swapped(NULL, NULL, 0), "optimizer");
    EXPECT_NULL(tsw_optimizer_pre_backward(NULL), "optimizer");
    EXPECT_NULL(tsw_optimizer_swap_out_gradients(NULL, 1, NULL, NULL, 0), "optimizer");
    EXPECT_NULL(tsw_optimizer_flush_gradients(NULL), "optimizer");
    EXPECT_NULL(tsw_optimizer_post_backward(NULL), "optimizer");
    EXPECT_NULL(tsw_optimizer_gradient_norm(NULL, 1, &sum, &nonfinite), "optimizer");
    EXPECT(!(sum > 0) && nonfinite == 0);
    EXPECT_NULL(tsw_optimizer_discard_gradients(NULL), "optimizer");
    EXPECT_NULL(tsw_optimizer_swap_in_state(NULL, 1, TSW_NO_PARAMETER, &view), "optimizer");
    EXPECT(view.id == TSW_NO_PARAMETER && view.numel == 0 && view.struct_size == sizeof view);
    EXPECT_NULL(tsw_optimizer_swap_out_state(NULL, 1, 0), "optimizer");
    EXPECT_NULL(tsw_optimizer_release_state(NULL, 1), "optimizer");
    EXPECT_NULL(tsw_optimizer_step_begin(NULL, NULL, 0), "optimizer");
    view.id = 7;
    EXPECT_NULL(tsw_optimizer_step_next(NULL, &view), "optimizer");
    EXPECT(view.id == TSW_NO_PARAMETER && view.states_len == 0 && view.states[0].data == NULL);
    EXPECT_NULL(tsw_optimizer_step_done(NULL, 1, 0), "optimizer");
    EXPECT_NULL(tsw_optimizer_step_end(NULL), "optimizer");
    EXPECT_NULL(tsw_optimizer_step_abort(NULL), "optimizer");
    EXPECT_NULL(tsw_optimizer_commit(NULL), "optimizer");
    EXPECT_NULL(tsw_optimizer_purge_state(NULL), "optimizer");
    EXPECT_NULL(tsw_optimizer_read_state(NULL, 1, "a", NULL), "optimizer");
    EXPECT_NULL(tsw_optimizer_write_state(NULL, 1, "a", NULL), "optimizer");
    EXPECT_NULL(tsw_optimizer_parameter_at(NULL, 0, &id, &numel), "optimizer");
    EXPECT(id == TSW_NO_PARAMETER && numel == 0);
    EXPECT_NULL(tsw_optimizer_set_user_data(NULL, "a", 1), "optimizer");
    EXPECT_NULL(tsw_optimizer_get_stats(NULL, &stats), "optimizer");
    EXPECT(stats.steps_count == 0 && stats.struct_size == sizeof stats);
    EXPECT_NULL(tsw_optimizer_get_timer(NULL, "swap_in_state", &timer), "optimizer");
    EXPECT(timer.count == 0);

    tsw_optimizer_free(NULL);
    EXPECT(tsw_optimizer_parameters_len(NULL) == 0);
    EXPECT(tsw_optimizer_get_user_data(NULL, &byte, 1) == 0 && byte == 7);
    EXPECT(tsw_optimizer_step_number(NULL) == 0);
    EXPECT(tsw_optimizer_timer_names(NULL, &name, 1) == 0 && strcmp(name, "before") == 0);
}

static void no_argument(tsw_engine *engine, tsw_optimizer *optimizer)
{
    float value = 1;
    const tsw_tensor tensor = floats(&value, 1);
    tsw_tensor empty = tensor;
    tsw_partition piece = {.param_id = 1, .tensor = tensor};
    tsw_timer timer = {.struct_size = sizeof timer};
    const uint64_t id = 1, offset = 0;
    uint64_t number = 7;
    double sum = 7;

    empty.data = NULL;
    piece.tensor.data = NULL;
    EXPECT_NULL(tsw_optimizer_new(engine, NULL, NULL), "optimizer_out");
    EXPECT_NULL(tsw_optimizer_add_state(optimizer, NULL, TSW_F32, TSW_F32), "name");
    EXPECT_NULL(tsw_optimizer_initialize_parameters(optimizer, NULL, &tensor, 1), "ids");
    EXPECT_NULL(tsw_optimizer_initialize_parameters(optimizer, &id, NULL, 1), "sources");
    EXPECT_NULL(tsw_optimizer_initialize_parameters(optimizer, &id, &empty, 1),
                "sources[0]: tensor data");
    EXPECT_STATUS(tsw_optimizer_initialize_parameters(optimizer, NULL, NULL, 0), TSW_OK);
    EXPECT_NULL(tsw_optimizer_initialize_from_swapped(optimizer, NULL, 1), "partitions");
    EXPECT_NULL(tsw_optimizer_initialize_from_swapped(optimizer, &piece, 1),
                "partitions[0]: tensor data");
    EXPECT_STATUS(tsw_optimizer_initialize_from_swapped(optimizer, NULL, 0), TSW_OK);
    EXPECT_NULL(tsw_optimizer_swap_out_gradients(optimizer, 1, NULL, &tensor, 1), "offsets");
    EXPECT_NULL(tsw_optimizer_swap_out_gradients(optimizer, 1, &offset, NULL, 1), "gradients");
    EXPECT_NULL(tsw_optimizer_swap_out_gradients(optimizer, 1, &offset, &empty, 1),
                "gradients[0]: tensor data");
    EXPECT_STATUS(tsw_optimizer_swap_out_gradients(optimizer, 1, NULL, NULL, 0), TSW_OK);
    EXPECT_NULL(tsw_optimizer_gradient_norm(optimizer, 1, NULL, &number), "sum_of_squares_out");
    EXPECT(number == 0);
    EXPECT_NULL(tsw_optimizer_gradient_norm(optimizer, 1, &sum, NULL), "nonfinite_count_out");
    EXPECT(!(sum > 0));
    EXPECT_NULL(tsw_optimizer_swap_in_state(optimizer, 1, TSW_NO_PARAMETER, NULL), "inout");
    EXPECT_NULL(tsw_optimizer_step_begin(optimizer, NULL, 1), "ids_or_null");
    EXPECT_STATUS(tsw_optimizer_step_begin(optimizer, NULL, 0), TSW_OK);
    EXPECT_NULL(tsw_optimizer_step_next(optimizer, NULL), "inout");
    EXPECT_STATUS(tsw_optimizer_step_abort(optimizer), TSW_OK);
    EXPECT_NULL(tsw_optimizer_read_state(optimizer, 1, NULL, &tensor), "state");
    EXPECT_NULL(tsw_optimizer_read_state(optimizer, 1, "master", NULL), "destination");
    EXPECT_NULL(tsw_optimizer_read_state(optimizer, 1, "master", &empty),
                "destination: tensor data");
    EXPECT_NULL(tsw_optimizer_write_state(optimizer, 1, NULL, &tensor), "state");
    EXPECT_NULL(tsw_optimizer_write_state(optimizer, 1, "master", NULL), "source");
    EXPECT_NULL(tsw_optimizer_parameter_at(optimizer, 0, NULL, &number), "id_out");
    EXPECT_NULL(tsw_optimizer_parameter_at(optimizer, 0, &number, NULL), "numel_out");
    EXPECT_NULL(tsw_optimizer_set_user_data(optimizer, NULL, 1), "data");
    EXPECT_STATUS(tsw_optimizer_set_user_data(optimizer, NULL, 0), TSW_OK);
    EXPECT(tsw_optimizer_get_user_data(optimizer, NULL, 0) == 0);
    EXPECT(tsw_optimizer_get_user_data(optimizer, NULL, 9) == 0);
    EXPECT_NULL(tsw_optimizer_get_stats(optimizer, NULL), "inout");
    EXPECT_NULL(tsw_optimizer_get_timer(optimizer, NULL, &timer), "name");
    EXPECT_NULL(tsw_optimizer_get_timer(optimizer, "swap_in_state", NULL), "inout");
    EXPECT(tsw_optimizer_timer_names(optimizer, NULL, 0) <= 9);
    EXPECT_USABLE(optimizer);
}

int main(void)
{
    tsw_engine *engine = new_engine(NULL, NULL);
    tsw_optimizer *optimizer;

    no_object();
    check(open_store(engine, &optimizer, NULL), "store");
    add_states(optimizer, TSW_F32, TSW_F32);
    EXPECT_STATUS(tsw_optimizer_add_parameter(optimizer, 1, NULL, 1), TSW_OK);
    no_argument(engine, optimizer);
    tsw_optimizer_free(optimizer);
    tsw_engine_free(engine);
    return result();
}
