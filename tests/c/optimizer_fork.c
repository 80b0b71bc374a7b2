/* After a fork the child gets TSW_ERR_FORKED for the parent's optimizer and can free it; the
 * parent's step goes on, its lock stays its own. */
#include "optimizer.h"

#include <sys/wait.h>

enum { ID = 1, NUMEL = 10000 };

static void in_the_child(tsw_engine *engine, tsw_optimizer *optimizer)
{
    tsw_parameter_view view = {.struct_size = sizeof view};
    tsw_optimizer_stats stats = {.struct_size = sizeof stats};
    tsw_engine *own;
    tsw_optimizer *second;
    float value = 1;
    const tsw_tensor tensor = floats(&value, 1);
    const uint64_t id = ID, offset = 0;
    uint64_t numel, nonfinite;
    double sum;

    EXPECT_ERROR(tsw_optimizer_step_next(optimizer, &view), TSW_ERR_FORKED, "fork");
    EXPECT(view.id == TSW_NO_PARAMETER);
    EXPECT_STATUS(tsw_optimizer_step_done(optimizer, ID, 1), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_optimizer_step_begin(optimizer, NULL, 0), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_optimizer_step_end(optimizer), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_optimizer_step_abort(optimizer), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_optimizer_commit(optimizer), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_optimizer_add_state(optimizer, "a", TSW_F32, TSW_F32), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_optimizer_add_parameter(optimizer, 2, NULL, 1), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_optimizer_initialize_parameters(optimizer, &id, &tensor, 1),
                  TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_optimizer_initialize_from_swapped(optimizer, NULL, 0), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_optimizer_pre_backward(optimizer), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_optimizer_swap_out_gradients(optimizer, ID, &offset, &tensor, 1),
                  TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_optimizer_flush_gradients(optimizer), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_optimizer_post_backward(optimizer), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_optimizer_gradient_norm(optimizer, ID, &sum, &nonfinite), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_optimizer_discard_gradients(optimizer), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_optimizer_swap_in_state(optimizer, ID, TSW_NO_PARAMETER, &view),
                  TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_optimizer_swap_out_state(optimizer, ID, 0), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_optimizer_release_state(optimizer, ID), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_optimizer_purge_state(optimizer), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_optimizer_read_state(optimizer, ID, "master", &tensor), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_optimizer_write_state(optimizer, ID, "master", &tensor), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_optimizer_set_user_data(optimizer, "a", 1), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_optimizer_parameter_at(optimizer, 0, &numel, &numel), TSW_ERR_FORKED);
    EXPECT_STATUS(tsw_optimizer_get_stats(optimizer, &stats), TSW_ERR_FORKED);
    EXPECT(tsw_optimizer_step_number(optimizer) == 0);
    EXPECT(tsw_optimizer_parameters_len(optimizer) == 0);
    EXPECT(tsw_optimizer_get_user_data(optimizer, NULL, 0) == 0);
    EXPECT(tsw_optimizer_timer_names(optimizer, NULL, 0) == 0);

    tsw_optimizer_free(optimizer); /* does nothing: the lock and the store are the parent's */
    tsw_engine_free(engine);

    own = new_engine(NULL, NULL);
    EXPECT_STATUS(open_store(own, &second, NULL), TSW_ERR_LOCKED);
    EXPECT_STATUS(open_store(own, &second, "rank", "1", NULL), TSW_OK);
    add_states(second, TSW_F32, TSW_F32);
    EXPECT_STATUS(tsw_optimizer_add_parameter(second, ID, NULL, NUMEL), TSW_OK);
    EXPECT_USABLE(second);
    tsw_optimizer_free(second);
    tsw_engine_free(own);
}

int main(void)
{
    tsw_engine *engine = new_engine(NULL, NULL), *third;
    tsw_optimizer *optimizer, *other;
    tsw_parameter_view view = {.struct_size = sizeof view};
    float *values = new_values(1, NUMEL);
    const tsw_tensor source = floats(values, NUMEL);
    const uint64_t id = ID;
    int status = -1;
    pid_t child;

    check(open_store(engine, &optimizer, NULL), "store");
    add_states(optimizer, TSW_F32, TSW_F32);
    check(tsw_optimizer_add_parameter(optimizer, ID, NULL, NUMEL), "parameter");
    check(tsw_optimizer_initialize_parameters(optimizer, &id, &source, 1), "initialize");
    check(tsw_optimizer_commit(optimizer), "commit");
    check(tsw_optimizer_step_begin(optimizer, NULL, 0), "begin");
    check(tsw_optimizer_step_next(optimizer, &view), "next");

#ifdef __SANITIZE_ADDRESS__
    pause_ms(100); /* the sanitizer's malloc does not survive a fork while a thread is in it */
#endif
    fflush(stdout);
    child = fork();
    if (child == 0) {
        in_the_child(engine, optimizer);
        fflush(stdout);
        _exit(failures > 0);
    }
    EXPECT(child > 0 && waitpid(child, &status, 0) == child);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);

    /* The lock outlived the child. */
    third = new_engine(NULL, NULL);
    EXPECT_STATUS(open_store(third, &other, NULL), TSW_ERR_LOCKED);
    tsw_engine_free(third);

    EXPECT(memcmp(view.states[MASTER].data, values, NUMEL * sizeof *values) == 0);
    values[0] = ((float *)view.states[MASTER].data)[0] = 17;
    EXPECT_STATUS(tsw_optimizer_step_done(optimizer, ID, 1), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_step_next(optimizer, &view), TSW_END);
    EXPECT_STATUS(tsw_optimizer_step_end(optimizer), TSW_OK);
    EXPECT_STATUS(tsw_optimizer_commit(optimizer), TSW_OK);
    EXPECT(state_is(optimizer, ID, MASTER, values, NUMEL));
    tsw_optimizer_free(optimizer);
    tsw_engine_free(engine);
    free(values);
    return result();
}
