/* Trains a small character-level language model while its optimizer state lives on storage.
 *
 * The master weights and both Adam moments, 12 bytes per parameter, are never in memory together.
 * They are cut into records of a bounded size in a store. An update goes through them: some threads
 * ask for the next record, update it in place and give it back, while the engine reads ahead and
 * writes behind. The model itself computes with a working copy of the weights, as a GPU would with
 * its 16-bit copy.
 *
 * Every step is committed together with what else a run needs to go on, in the background. So
 * --crash-at kills the program in the middle of a step, and --resume goes on at the last step that
 * is durable and ends with the same bits. With --verify the same training goes on in memory as
 * well, and every bit of weights and moments must be the same. `train_adam --help` lists the
 * options. */
#include "train_run.h"

#include <pthread.h>
#include <stdatomic.h>

enum { RECORDS = 16 }; /* about that many: a record is at most a sixteenth of all */

/* A run of parameters of one layer: one record of the store. Its place in the list is its id. */
struct piece {
    size_t first, count;
    char *name;
};

struct training {
    const struct options *options;
    const struct text *text;
    const char *directory;
    struct model *model;
    struct piece *pieces;
    size_t pieces_len;
    tsw_engine *engine;
    tsw_optimizer *optimizer;
    struct progress progress;
    float *reference[STATES]; /* the same training in memory, with --verify */
    int step;                 /* the one that is under way or was done last */
    atomic_size_t given_back; /* records of this step */
    uint64_t shown_ns;
};

/* ---- storage ---- */

/* Cuts every layer into records of at most a sixteenth of all parameters. */
static void cut_pieces(struct training *training)
{
    const struct model *model = training->model;
    const size_t count_max = model->parameters / RECORDS + 1;

    for (int i = 0; i < LAYERS; i++) {
        const struct layer *layer = &model->layers[i];
        for (size_t done = 0; done < layer->count; done += count_max) {
            const size_t rest = layer->count - done;
            struct piece piece = {layer->first + done, rest < count_max ? rest : count_max,
                                  path_in(layer->name, "%zu", done / count_max)};
            training->pieces = check_memory(realloc(
                training->pieces, (training->pieces_len + 1) * sizeof *training->pieces));
            training->pieces[training->pieces_len++] = piece;
        }
    }
}

/* Opens the store: `mode` is "new" or "existing". */
static void storage_open(struct training *training, const char *mode)
{
    const struct options *options = training->options;
    tsw_config *config = check_memory(tsw_config_new());
    char views[24];

    /* One view for each thread. */
    snprintf(views, sizeof views, "%ld", options->threads);
    check(tsw_config_set(config, "path", training->directory), "store");
    check(tsw_config_set(config, "store", mode), "store");
    check(tsw_config_set(config, "views_max", views), "views");
    for (int i = 0; i < options->settings_len; i++) {
        char *key = check_memory(strdup(options->settings[i])), *value = strchr(key, '=');
        if (value == NULL)
            fail("--set", "KEY=VALUE is expected");
        *value++ = '\0';
        check(tsw_config_set(config, key, value), "--set");
        free(key);
    }
    check(tsw_engine_new(config, &training->engine), "engine");
    check(tsw_optimizer_new(training->engine, config, &training->optimizer), "store");
    tsw_config_free(config);

    for (int state = 0; state < STATES; state++)
        check(tsw_optimizer_add_state(training->optimizer, state_names[state], TSW_F32,
                                      options->disk_types[state]),
              "add state");
    for (size_t i = 0; i < training->pieces_len; i++)
        check(tsw_optimizer_add_parameter(training->optimizer, i, training->pieces[i].name,
                                          training->pieces[i].count),
              "add parameter");
}

static void storage_close(struct training *training)
{
    tsw_optimizer_free(training->optimizer);
    tsw_engine_free(training->engine);
    training->optimizer = NULL;
    training->engine = NULL;
}

static tsw_tensor floats(float *values, size_t count)
{
    return (tsw_tensor){.data = values, .numel = count, .dtype = TSW_F32};
}

static void read_state(const struct training *training, size_t id, int state, float *values)
{
    const tsw_tensor destination = floats(values, training->pieces[id].count);
    check(tsw_optimizer_read_state(training->optimizer, id, state_names[state], &destination),
          "read state");
}

/* The masters become the working copies of the weights. */
static void read_weights(const struct training *training)
{
    for (size_t id = 0; id < training->pieces_len; id++)
        read_state(training, id, MASTER, training->model->weights + training->pieces[id].first);
}

/* Puts the state before the first step into the store: the weights are the masters, or with --init
 * the tensors with the names of the records. */
static void storage_initialize(struct training *training)
{
    const char *file = training->options->init_from;

    for (uint64_t id = 0; id < training->pieces_len; id++) {
        const struct piece *piece = &training->pieces[id];
        const tsw_tensor source = floats(training->model->weights + piece->first, piece->count);
        check(file == NULL
                  ? tsw_optimizer_initialize_parameters(training->optimizer, &id, &source, 1)
                  : tsw_optimizer_initialize_from_safetensors(training->optimizer, file, &id, NULL,
                                                              1),
              "initialize");
    }
    if (file != NULL)
        read_weights(training);
    check(tsw_optimizer_set_user_data(training->optimizer, &training->progress,
                                      sizeof training->progress),
          "progress");
    check(tsw_optimizer_commit(training->optimizer), "commit");
}

/* ---- a step ---- */

/* One of the threads that update records until none is left. */
static void *update_records(void *argument)
{
    struct training *training = argument;
    tsw_parameter_view view = {.struct_size = sizeof view};
    tsw_status status;

    while ((status = tsw_optimizer_step_next(training->optimizer, &view)) == TSW_OK) {
        float *const states[STATES] = {view.states[MASTER].data, view.states[EXP_AVG].data,
                                       view.states[EXP_AVG_SQ].data};
        float *weights = training->model->weights + training->pieces[view.id].first;

        adam_update(states, view.gradient.data, view.numel, training->step,
                    (float)training->progress.rate);
        memcpy(weights, states[MASTER], view.numel * sizeof *weights);
        round_state(training->options, MASTER, weights, view.numel);
        check(tsw_optimizer_step_done(training->optimizer, view.id, 1), "step done");

        if (atomic_fetch_add(&training->given_back, 1) == training->pieces_len / 2
            && training->step == training->options->crash_at)
            crash(training->step);
    }
    check(status, "step next");
    return NULL;
}

/* Swaps the gradients out, and updates every record in as many threads as were asked for. */
static void step_on_storage(struct training *training)
{
    pthread_t threads[THREADS_MAX];
    const uint64_t offset = 0;

    check(tsw_optimizer_pre_backward(training->optimizer), "pre backward");
    for (size_t id = 0; id < training->pieces_len; id++) {
        const struct piece *piece = &training->pieces[id];
        const tsw_tensor gradient = floats(training->model->gradients + piece->first, piece->count);
        check(tsw_optimizer_swap_out_gradients(training->optimizer, id, &offset, &gradient, 1),
              "swap out gradients");
    }
    check(tsw_optimizer_post_backward(training->optimizer), "post backward");

    atomic_store(&training->given_back, 0);
    check(tsw_optimizer_step_begin(training->optimizer, NULL, 0), "step begin");
    for (long i = 1; i < training->options->threads; i++) {
        const int error = pthread_create(&threads[i], NULL, update_records, training);
        if (error != 0)
            fail("thread", strerror(error));
    }
    update_records(training);
    for (long i = 1; i < training->options->threads; i++)
        pthread_join(threads[i], NULL);
}

/* Makes the step durable, in the background, together with the progress after it. */
static void step_end(struct training *training)
{
    check(tsw_optimizer_set_user_data(training->optimizer, &training->progress,
                                      sizeof training->progress),
          "progress");
    check(tsw_optimizer_step_end(training->optimizer), "step end");
}

static void step_in_memory(struct training *training)
{
    const struct model *model = training->model;

    adam_update(training->reference, model->gradients, model->parameters, training->step,
                (float)training->progress.rate);
    for (int state = 0; state < STATES; state++)
        round_state(training->options, state, training->reference[state], model->parameters);
}

/* One step; with `on_storage` 0 in memory alone. */
static void train_step(struct training *training, int on_storage)
{
    struct model *model = training->model;
    double loss;

    training->step++;
    model_draw_batch(model, training->text);
    loss = model_forward(model);
    model_backward(model);
    if (on_storage)
        step_on_storage(training);
    if (training->reference[MASTER] != NULL)
        step_in_memory(training);
    if (!on_storage)
        memcpy(model->weights, training->reference[MASTER], model->parameters * sizeof(float));

    progress_advance(&training->progress, model, training->step, loss);
    if (on_storage)
        step_end(training);
}

/* ---- verification ---- */

/* Compares what the store holds with the training in memory. */
static int verify(const struct training *training)
{
    const size_t parameters = training->model->parameters;
    float *values = new_floats(parameters);
    int different = 0;

    for (size_t id = 0; id < training->pieces_len; id++)
        for (int state = 0; state < STATES; state++) {
            const struct piece *piece = &training->pieces[id];
            memset(values, 0xff, piece->count * sizeof *values);
            read_state(training, id, state, values);
            if (memcmp(values, training->reference[state] + piece->first,
                       piece->count * sizeof *values)
                != 0) {
                printf("verify: %s of %s differs\n", state_names[state], piece->name);
                different++;
            }
        }
    free(values);
    if (memcmp(training->model->weights, training->reference[MASTER], parameters * sizeof *values)
        != 0) {
        printf("verify: the working copies of the weights differ\n");
        different++;
    }
    if (different == 0)
        printf("verify: equal bit for bit (%zu bytes) after step %d\n",
               STATES * parameters * sizeof *values, training->step);
    return different == 0;
}

/* One number for every bit that the store holds (FNV-1a). */
static uint64_t checksum(const struct training *training)
{
    uint64_t sum = UINT64_C(0xcbf29ce484222325);
    float *values = new_floats(training->model->parameters);

    for (size_t id = 0; id < training->pieces_len; id++)
        for (int state = 0; state < STATES; state++) {
            const unsigned char *bytes = (const unsigned char *)values;
            read_state(training, id, state, values);
            for (size_t i = 0; i < training->pieces[id].count * sizeof *values; i++)
                sum = (sum ^ bytes[i]) * UINT64_C(0x100000001b3);
        }
    free(values);
    return sum;
}

/* ---- a run ---- */

static void reference_begin(struct training *training)
{
    for (int state = 0; state < STATES; state++)
        training->reference[state] = new_floats(training->model->parameters);
    memcpy(training->reference[MASTER], training->model->weights,
           training->model->parameters * sizeof(float));
}

/* Takes up the run that the store holds. With --verify the steps up to there are repeated in memory
 * and must have led to the same bits. */
static int run_resume(struct training *training)
{
    const size_t len = sizeof training->progress;
    const uint64_t steps = tsw_optimizer_step_number(training->optimizer);
    struct progress stored;
    int good = 1;

    if (tsw_optimizer_get_user_data(training->optimizer, &stored, len) != len)
        fail("--resume", "the store holds no training");
    if (stored.text_len != training->text->len)
        fail("--resume", "the training was begun with another text");
    printf("resumed after step %llu, loss %.3f\n", (unsigned long long)steps, stored.loss_mean);

    if (training->options->verify)
        while (!interrupted && (uint64_t)training->step < steps)
            train_step(training, 0);
    training->step = (int)steps;
    training->progress = stored;
    training->model->random = stored.random;
    read_weights(training);
    if (training->options->verify && !interrupted)
        good = verify(training);
    return good;
}

/* Makes the model and opens the store; whether it is as it should be. */
static int run_begin(struct training *training)
{
    const struct options *options = training->options;
    struct model *model =
        model_new(training->text->alphabet, (size_t)options->hidden, (uint64_t)options->seed);
    tsw_optimizer_stats stats = {.struct_size = sizeof stats};
    int good = 1;

    training->model = model;
    training->progress = progress_begin(training->text, model);
    training->directory = options->store != NULL ? options->store : temporary_directory(".");
    cut_pieces(training);
    round_state(options, MASTER, model->weights, model->parameters);
    storage_open(training, options->resume ? "existing" : "new");
    if (!options->resume)
        storage_initialize(training);
    if (options->verify)
        reference_begin(training);
    if (options->resume)
        good = run_resume(training);

    check(tsw_optimizer_get_stats(training->optimizer, &stats), "figures");
    printf("model: %zu parameters in %zu records\n"
           "state: %s %s %s; %.1f MiB reserved on storage for two versions\n",
           model->parameters, training->pieces_len, tsw_dtype_name(options->disk_types[MASTER]),
           tsw_dtype_name(options->disk_types[EXP_AVG]),
           tsw_dtype_name(options->disk_types[EXP_AVG_SQ]), mib(stats.store_bytes));
    return good;
}

/* On a terminal one line that is rewritten ten times a second, else five lines in all. */
static void show_progress(struct training *training)
{
    const long steps = training->options->steps, every = steps < 5 ? 1 : steps / 5;
    const int terminal = isatty(STDOUT_FILENO), step = training->step;
    const int last = step == steps || interrupted;
    const uint64_t now = now_ns();
    tsw_optimizer_stats stats = {.struct_size = sizeof stats};

    if (!last && (terminal ? now - training->shown_ns < 100000000u : step % every != 0 && step > 1))
        return;
    training->shown_ns = now;
    check(tsw_optimizer_get_stats(training->optimizer, &stats), "figures");
    printf("%sstep %4d/%ld  loss %.3f  read %5.1f MiB  written %5.1f MiB  update %6.1f ms%s",
           terminal ? "\r" : "", step, steps, training->progress.loss_mean,
           mib(stats.step_read_bytes), mib(stats.step_written_bytes), ms(stats.step_ns),
           !terminal || last ? "\n" : "  ");
    fflush(stdout);
}

static void show_summary(const struct training *training)
{
    const uint64_t state_bytes = STATES * training->model->parameters * sizeof(float);
    tsw_optimizer_stats stats = {.struct_size = sizeof stats};

    check(tsw_optimizer_get_stats(training->optimizer, &stats), "figures");
    printf("loss: %.3f at first, %.3f at last (nats per character)\n"
           "pinned: %.1f MiB at most, %.0f %% of the state in memory's types\n"
           "storage: read %.1f MiB, written %.1f MiB; %llu of %llu records needed no read\n"
           "last step: %.1f ms; its I/O alone %.1f ms, its updates alone %.1f ms\n"
           "waited in all: %.1f ms for reads, %.1f ms for writes\n",
           training->progress.loss_first, training->progress.loss_mean,
           mib(stats.pinned_peak_bytes),
           100.0 * (double)stats.pinned_peak_bytes / (double)state_bytes, mib(stats.read_bytes),
           mib(stats.written_bytes), (unsigned long long)stats.cache_hits_count,
           (unsigned long long)(stats.cache_hits_count + stats.cache_misses_count),
           ms(stats.step_ns), ms(stats.io_floor_ns), ms(stats.compute_floor_ns),
           ms(stats.wait_read_ns), ms(stats.wait_write_ns));
}

/* Trains up to the last step, opens the store anew and looks at what it holds. */
static int run(struct training *training)
{
    int good = run_begin(training);

    while (good && training->step < training->options->steps && !interrupted) {
        train_step(training, 1);
        show_progress(training);
    }
    check(tsw_optimizer_commit(training->optimizer), "commit");
    if (training->options->export_to != NULL)
        check(tsw_optimizer_export_safetensors(training->optimizer, training->options->export_to, 0),
              "--export");
    show_summary(training);
    storage_close(training);

    storage_open(training, "existing");
    if (good && training->options->verify && !interrupted)
        good = verify(training);
    if (good)
        printf("checksum after step %llu: %016llx\n",
               (unsigned long long)tsw_optimizer_step_number(training->optimizer),
               (unsigned long long)checksum(training));
    storage_close(training);
    return good;
}

static void training_free(struct training *training)
{
    for (size_t i = 0; i < training->pieces_len; i++)
        free(training->pieces[i].name);
    free(training->pieces);
    for (int state = 0; state < STATES; state++)
        free(training->reference[state]);
    model_free(training->model);
}

/* ---- main ---- */

int main(int argc, char **argv)
{
    const struct options options = parse_options(argc, argv);
    struct text text;
    struct training training = {.options = &options, .text = &text};
    int good;

    catch_signals();
    text = text_of_arguments(argc, argv);
    good = run(&training);
    training_free(&training);
    free(text.symbols);
    if (interrupted)
        return 128 + interrupted;
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
