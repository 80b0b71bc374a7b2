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
 * well, and every bit of weights and moments must be the same.
 *
 * With --ranks N every record is cut into N parts, as ZeRO does with N processes, and each rank has
 * a store of its own. --snapshot copies them at the end; `tensorswap reshard` makes snapshots of
 * another number of ranks from them, and --restore begins with those. `train_adam --help` lists the
 * options. */
#include "train_run.h"

#include <pthread.h>
#include <stdatomic.h>

enum { RECORDS = 16 }; /* about that many: a record is at most a sixteenth of all */

/* A run of parameters of one layer: one rank's part of a record, of which all ranks together have
 * the whole. The list has the parts of record 0, then those of record 1, and so on. */
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
    tsw_optimizer *optimizers[RANKS_MAX];
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
            const size_t count = rest < count_max ? rest : count_max;
            const size_t ranks = (size_t)training->options->ranks, part = (count + ranks - 1) / ranks;
            training->pieces = check_memory(realloc(
                training->pieces, (training->pieces_len + ranks) * sizeof *training->pieces));
            for (size_t rank = 0; rank < ranks; rank++) {
                /* The last ones may be shorter, or have nothing. */
                const size_t start = rank * part < count ? rank * part : count;
                struct piece piece = {layer->first + done + start,
                                      count - start < part ? count - start : part,
                                      path_in(layer->name, "%zu", done / count_max)};
                training->pieces[training->pieces_len++] = piece;
            }
        }
    }
}

/* The id of a piece's record. */
static uint64_t id_of(const struct training *training, size_t piece)
{
    return piece / (size_t)training->options->ranks;
}

static tsw_optimizer *optimizer_of(const struct training *training, size_t piece)
{
    return training->optimizers[piece % (size_t)training->options->ranks];
}

/* Makes a store for one rank, or opens the one that is there. */
static void rank_open(struct training *training, tsw_config *config, long rank)
{
    const struct options *options = training->options;
    char number[24];

    snprintf(number, sizeof number, "%ld", rank);
    check(tsw_config_set(config, "rank", number), "rank");
    check(tsw_optimizer_new(training->engine, config, &training->optimizers[rank]), "store");
    for (int state = 0; state < STATES; state++)
        check(tsw_optimizer_add_state(training->optimizers[rank], state_names[state], TSW_F32,
                                      options->disk_types[state]),
              "add state");
}

/* Opens the stores: `mode` is "new" or "existing". */
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
    for (long rank = 0; rank < options->ranks; rank++)
        rank_open(training, config, rank);
    tsw_config_free(config);
}

static void storage_add_parameters(struct training *training)
{
    for (size_t i = 0; i < training->pieces_len; i++)
        if (training->pieces[i].count > 0)
            check(tsw_optimizer_add_parameter(optimizer_of(training, i), id_of(training, i),
                                              training->pieces[i].name, training->pieces[i].count),
                  "add parameter");
}

static void storage_close(struct training *training)
{
    for (long rank = 0; rank < training->options->ranks; rank++)
        tsw_optimizer_free(training->optimizers[rank]);
    tsw_engine_free(training->engine);
    memset(training->optimizers, 0, sizeof training->optimizers);
    training->engine = NULL;
}

static void storage_commit(struct training *training)
{
    for (long rank = 0; rank < training->options->ranks; rank++)
        check(tsw_optimizer_commit(training->optimizers[rank]), "commit");
}

static void set_progress(struct training *training)
{
    for (long rank = 0; rank < training->options->ranks; rank++)
        check(tsw_optimizer_set_user_data(training->optimizers[rank], &training->progress,
                                          sizeof training->progress),
              "progress");
}

static tsw_tensor floats(float *values, size_t count)
{
    return (tsw_tensor){.data = values, .numel = count, .dtype = TSW_F32};
}

static void read_state(const struct training *training, size_t piece, int state, float *values)
{
    const tsw_tensor destination = floats(values, training->pieces[piece].count);

    if (destination.numel > 0)
        check(tsw_optimizer_read_state(optimizer_of(training, piece), id_of(training, piece),
                                       state_names[state], &destination),
              "read state");
}

/* The masters become the working copies of the weights. */
static void read_weights(const struct training *training)
{
    for (size_t i = 0; i < training->pieces_len; i++)
        read_state(training, i, MASTER, training->model->weights + training->pieces[i].first);
}

/* Puts the state before the first step into the store: the weights are the masters, or with --init
 * the tensors with the names of the records. */
static void storage_initialize(struct training *training)
{
    const char *file = training->options->init_from;

    for (size_t i = 0; i < training->pieces_len; i++) {
        const struct piece *piece = &training->pieces[i];
        const tsw_tensor source = floats(training->model->weights + piece->first, piece->count);
        const uint64_t id = id_of(training, i);
        tsw_optimizer *optimizer = optimizer_of(training, i);
        if (piece->count > 0)
            check(file == NULL
                      ? tsw_optimizer_initialize_parameters(optimizer, &id, &source, 1)
                      : tsw_optimizer_initialize_from_safetensors(optimizer, file, &id, NULL, 1),
                  "initialize");
    }
    if (file != NULL)
        read_weights(training);
    set_progress(training);
    storage_commit(training);
}

/* Copies the store of each rank, all at once. */
static void storage_snapshot(struct training *training)
{
    tsw_ticket tickets[RANKS_MAX];

    for (long rank = 0; rank < training->options->ranks; rank++) {
        char *path = path_in(training->options->snapshot, "rank%zu", (size_t)rank);
        check(tsw_optimizer_snapshot(training->optimizers[rank], path, &tickets[rank]), "snapshot");
        free(path);
    }
    for (long rank = 0; rank < training->options->ranks; rank++)
        check(tsw_ticket_wait(training->engine, tickets[rank], TSW_WAIT_FOREVER, NULL), "snapshot");
    printf("snapshot: %s, after step %d\n", training->options->snapshot, training->step);
}

/* Fills the new store of each rank. */
static void storage_restore(struct training *training)
{
    for (long rank = 0; rank < training->options->ranks; rank++) {
        char *path = path_in(training->options->restore, "rank%zu", (size_t)rank);
        check(tsw_optimizer_restore(training->optimizers[rank], path), "restore");
        free(path);
    }
}

/* ---- a step ---- */

/* One of the threads that update records of a rank until none is left. */
struct worker {
    struct training *training;
    size_t rank;
};

static void *update_records(void *argument)
{
    const struct worker *worker = argument;
    struct training *training = worker->training;
    const size_t ranks = (size_t)training->options->ranks;
    tsw_optimizer *optimizer = training->optimizers[worker->rank];
    tsw_parameter_view view = {.struct_size = sizeof view};
    tsw_status status;

    while ((status = tsw_optimizer_step_next(optimizer, &view)) == TSW_OK) {
        float *const states[STATES] = {view.states[MASTER].data, view.states[EXP_AVG].data,
                                       view.states[EXP_AVG_SQ].data};
        float *weights =
            training->model->weights + training->pieces[view.id * ranks + worker->rank].first;

        adam_update(states, view.gradient.data, view.numel, training->step,
                    (float)training->progress.rate);
        memcpy(weights, states[MASTER], view.numel * sizeof *weights);
        round_state(training->options, MASTER, weights, view.numel);
        check(tsw_optimizer_step_done(optimizer, view.id, 1), "step done");

        if (atomic_fetch_add(&training->given_back, 1) == training->pieces_len / 2
            && training->step == training->options->crash_at)
            crash(training->step);
    }
    check(status, "step next");
    return NULL;
}

/* Updates every record of a rank in as many threads as were asked for. */
static void step_of_rank(struct training *training, size_t rank)
{
    pthread_t threads[THREADS_MAX];
    struct worker worker = {training, rank};

    check(tsw_optimizer_step_begin(training->optimizers[rank], NULL, 0), "step begin");
    for (long i = 1; i < training->options->threads; i++) {
        const int error = pthread_create(&threads[i], NULL, update_records, &worker);
        if (error != 0)
            fail("thread", strerror(error));
    }
    update_records(&worker);
    for (long i = 1; i < training->options->threads; i++)
        pthread_join(threads[i], NULL);
}

/* Swaps the gradients out, and updates every record of every rank. */
static void step_on_storage(struct training *training)
{
    const size_t ranks = (size_t)training->options->ranks;
    const uint64_t offset = 0;

    for (size_t rank = 0; rank < ranks; rank++)
        check(tsw_optimizer_pre_backward(training->optimizers[rank]), "pre backward");
    for (size_t i = 0; i < training->pieces_len; i++) {
        const struct piece *piece = &training->pieces[i];
        const tsw_tensor gradient = floats(training->model->gradients + piece->first, piece->count);
        if (piece->count > 0)
            check(tsw_optimizer_swap_out_gradients(optimizer_of(training, i), id_of(training, i),
                                                   &offset, &gradient, 1),
                  "swap out gradients");
    }
    for (size_t rank = 0; rank < ranks; rank++)
        check(tsw_optimizer_post_backward(training->optimizers[rank]), "post backward");

    atomic_store(&training->given_back, 0);
    for (size_t rank = 0; rank < ranks; rank++)
        step_of_rank(training, rank);
}

/* Makes the step durable, in the background, together with the progress after it. */
static void step_end(struct training *training)
{
    set_progress(training);
    for (long rank = 0; rank < training->options->ranks; rank++)
        check(tsw_optimizer_step_end(training->optimizers[rank]), "step end");
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

    for (size_t i = 0; i < training->pieces_len; i++)
        for (int state = 0; state < STATES; state++) {
            const struct piece *piece = &training->pieces[i];
            memset(values, 0xff, piece->count * sizeof *values);
            read_state(training, i, state, values);
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

/* One number for every bit that the stores hold, however many ranks there are (FNV-1a). */
static uint64_t checksum(const struct training *training)
{
    const size_t ranks = (size_t)training->options->ranks;
    uint64_t sum = UINT64_C(0xcbf29ce484222325);
    float *values = new_floats(training->model->parameters);

    for (size_t record = 0; record < training->pieces_len; record += ranks)
        for (int state = 0; state < STATES; state++)
            for (size_t i = record; i < record + ranks; i++) {
                const unsigned char *bytes = (const unsigned char *)values;
                read_state(training, i, state, values);
                for (size_t at = 0; at < training->pieces[i].count * sizeof *values; at++)
                    sum = (sum ^ bytes[at]) * UINT64_C(0x100000001b3);
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

/* Takes up the run that the stores hold. With --verify the steps up to there are repeated in memory
 * and must have led to the same bits. */
static int run_resume(struct training *training)
{
    const size_t len = sizeof training->progress;
    const uint64_t steps = tsw_optimizer_step_number(training->optimizers[0]);
    struct progress stored;
    int good = 1;

    for (long rank = 1; rank < training->options->ranks; rank++)
        if (tsw_optimizer_step_number(training->optimizers[rank]) != steps)
            fail("--resume", "the ranks have not come equally far; --restore a snapshot");
    if (tsw_optimizer_get_user_data(training->optimizers[0], &stored, len) != len)
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

/* The figures that are shown, of all ranks together: they work one after the other. */
static tsw_optimizer_stats figures_of(const struct training *training)
{
    tsw_optimizer_stats sum = {.struct_size = sizeof sum};

    for (long rank = 0; rank < training->options->ranks; rank++) {
        tsw_optimizer_stats stats = {.struct_size = sizeof stats};
        check(tsw_optimizer_get_stats(training->optimizers[rank], &stats), "figures");
        sum.store_bytes += stats.store_bytes;
        sum.step_read_bytes += stats.step_read_bytes;
        sum.step_written_bytes += stats.step_written_bytes;
        sum.read_bytes += stats.read_bytes;
        sum.written_bytes += stats.written_bytes;
        sum.pinned_peak_bytes += stats.pinned_peak_bytes;
        sum.cache_hits_count += stats.cache_hits_count;
        sum.cache_misses_count += stats.cache_misses_count;
        sum.step_ns += stats.step_ns;
        sum.io_floor_ns += stats.io_floor_ns;
        sum.compute_floor_ns += stats.compute_floor_ns;
        sum.wait_read_ns += stats.wait_read_ns;
        sum.wait_write_ns += stats.wait_write_ns;
    }
    return sum;
}

/* Makes the model and opens the stores; whether they are as they should be. */
static int run_begin(struct training *training)
{
    const struct options *options = training->options;
    struct model *model =
        model_new(training->text->alphabet, (size_t)options->hidden, (uint64_t)options->seed);
    const int goes_on = options->resume || options->restore != NULL;
    tsw_optimizer_stats stats;
    int good = 1;

    training->model = model;
    training->progress = progress_begin(training->text, model);
    training->directory = options->store != NULL ? options->store : temporary_directory(".");
    cut_pieces(training);
    round_state(options, MASTER, model->weights, model->parameters);
    storage_open(training, options->resume ? "existing" : "new");
    if (options->restore != NULL)
        storage_restore(training);
    else
        storage_add_parameters(training);
    if (!goes_on)
        storage_initialize(training);
    if (options->verify)
        reference_begin(training);
    if (goes_on)
        good = run_resume(training);

    stats = figures_of(training);
    printf("model: %zu parameters in %zu records\n"
           "state: %s %s %s; %.1f MiB reserved on storage for two versions\n",
           model->parameters, training->pieces_len / (size_t)options->ranks, tsw_dtype_name(options->disk_types[MASTER]),
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
    tsw_optimizer_stats stats;

    if (!last && (terminal ? now - training->shown_ns < 100000000u : step % every != 0 && step > 1))
        return;
    training->shown_ns = now;
    stats = figures_of(training);
    printf("%sstep %4d/%ld  loss %.3f  read %5.1f MiB  written %5.1f MiB  update %6.1f ms%s",
           terminal ? "\r" : "", step, steps, training->progress.loss_mean,
           mib(stats.step_read_bytes), mib(stats.step_written_bytes), ms(stats.step_ns),
           !terminal || last ? "\n" : "  ");
    fflush(stdout);
}

static void show_summary(const struct training *training)
{
    const uint64_t state_bytes = STATES * training->model->parameters * sizeof(float);
    const tsw_optimizer_stats stats = figures_of(training);

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
    storage_commit(training);
    if (training->options->export_to != NULL)
        check(tsw_optimizer_export_safetensors(training->optimizers[0],
                                               training->options->export_to, 0),
              "--export");
    if (training->options->snapshot != NULL)
        storage_snapshot(training);
    show_summary(training);
    storage_close(training);

    storage_open(training, "existing");
    storage_add_parameters(training);
    if (good && training->options->verify && !interrupted)
        good = verify(training);
    if (good)
        printf("checksum after step %llu: %016llx\n",
               (unsigned long long)tsw_optimizer_step_number(training->optimizers[0]),
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
