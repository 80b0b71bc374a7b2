/* Trains a small character-level language model while its optimizer state lives on storage.
 *
 * The master weights and both Adam moments, 12 bytes per parameter, are never in memory together.
 * They are cut into records of a bounded size, three files each. An update goes through them one by
 * one: the states of a record come in through a direct request into pinned memory, are updated, and
 * go out through the swapper, while those of the next record are already on their way in. The model
 * itself computes with a working copy of the weights, as a GPU would with its 16-bit copy.
 *
 * With --verify the same training runs again with all of the state in memory, and every bit of
 * weights and moments must be the same. `train_text --help` lists the options. */
#include "text_model.h"

#include <getopt.h>
#include <signal.h>

struct options {
    const char *directory, *backend;
    long steps, hidden, seed;
    int verify;
};

static volatile sig_atomic_t interrupted;

static uint64_t now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static double mib(uint64_t len_bytes)
{
    return (double)len_bytes / (1 << 20);
}

/* ---- storage: the optimizer state, on disk ---- */

enum {
    RECORDS = 16,        /* about that many: a state of one record is a sixteenth of all */
    RECORD_STEP = 1024,  /* records are multiples of 4 KiB, so that direct I/O needs no copy */
    SLOTS = 2,           /* one record is updated, the next is on its way in */
    STAGING_BUFFERS = 6  /* the states of two records on their way out */
};

/* A run of parameters of one layer, and the files of its states. */
struct record {
    size_t first, count;
    char *paths[STATES];
};

struct storage {
    tsw_engine *engine;
    tsw_swapper *swapper;
    tsw_buffer *slots, *staging[STAGING_BUFFERS];
    tsw_ticket tickets[SLOTS]; /* of the record that is coming into each slot */
    struct record *records;
    size_t records_len, record_count_max;
    uint64_t pinned_bytes, swapped_bytes, read_wait_ns;
};

/* Cuts every layer into records of at most record_count_max parameters. */
static void storage_cut_records(struct storage *storage, const struct model *model,
                                const char *directory)
{
    const size_t count_max = storage->record_count_max;

    for (int i = 0; i < LAYERS; i++) {
        const struct layer *layer = &model->layers[i];
        for (size_t done = 0; done < layer->count; done += count_max) {
            const size_t rest = layer->count - done;
            struct record record = {layer->first + done, rest < count_max ? rest : count_max, {0}};
            for (int state = 0; state < STATES; state++)
                record.paths[state] = path_in(directory, "%s.%zu.%s", layer->name,
                                              done / count_max, state_names[state]);
            storage->records = check_memory(realloc(
                storage->records, (storage->records_len + 1) * sizeof *storage->records));
            storage->records[storage->records_len++] = record;
        }
    }
}

/* All the pinned memory there will be: SLOTS records in, STAGING_BUFFERS states out. */
static void storage_open(struct storage *storage, const struct model *model,
                         const struct options *options)
{
    tsw_config *config = check_memory(tsw_config_new());
    const size_t share = model->parameters / RECORDS;
    size_t state_bytes;

    *storage = (struct storage){0};
    storage->record_count_max = (share + RECORD_STEP - 1) / RECORD_STEP * RECORD_STEP;
    storage_cut_records(storage, model, temporary_directory(options->directory));

    check(tsw_config_set(config, "backend", options->backend), "option --backend");
    check(tsw_engine_new(config, &storage->engine), "engine");
    check(tsw_swapper_new(storage->engine, config, &storage->swapper), "swapper");
    tsw_config_free(config);

    state_bytes = storage->record_count_max * sizeof(float);
    check(tsw_buffer_new(storage->engine, SLOTS * STATES * state_bytes, &storage->slots), "slots");
    storage->pinned_bytes = tsw_buffer_len(storage->slots);
    for (int i = 0; i < STAGING_BUFFERS; i++) {
        check(tsw_buffer_new(storage->engine, state_bytes, &storage->staging[i]), "staging");
        storage->pinned_bytes += tsw_buffer_len(storage->staging[i]);
    }
    check(tsw_swapper_add_buffers(storage->swapper, storage->staging, STAGING_BUFFERS, TSW_F32),
          "staging buffers");
}

static void storage_close(struct storage *storage)
{
    tsw_swapper_free(storage->swapper);
    for (int i = 0; i < STAGING_BUFFERS; i++)
        tsw_buffer_free(storage->staging[i]);
    tsw_buffer_free(storage->slots); /* waits for a read that may still be coming in */
    tsw_engine_free(storage->engine);
    for (size_t i = 0; i < storage->records_len; i++)
        for (int state = 0; state < STATES; state++)
            free(storage->records[i].paths[state]);
    free(storage->records);
}

static const char *const *record_paths(const struct record *record)
{
    return (const char *const *)record->paths;
}

static void record_tensors(const struct record *record, float *const states[STATES],
                           tsw_tensor tensors[STATES])
{
    for (int state = 0; state < STATES; state++)
        tensors[state] =
            (tsw_tensor){.data = states[state], .numel = record->count, .dtype = TSW_F32};
}

/* Where in pinned memory the states of record `index` are updated. */
static void slot_states(const struct storage *storage, size_t index, float *states[STATES])
{
    float *slots = tsw_buffer_data(storage->slots);
    for (int state = 0; state < STATES; state++)
        states[state] =
            slots + (index % SLOTS * STATES + (size_t)state) * storage->record_count_max;
}

/* Stages the record's states and returns; they are written in the background. */
static void record_swap_out(struct storage *storage, size_t index, float *const states[STATES])
{
    const struct record *record = &storage->records[index];
    tsw_tensor tensors[STATES];

    record_tensors(record, states, tensors);
    check(tsw_swapper_swap_out(storage->swapper, tensors, record_paths(record), STATES),
          "swap out");
    storage->swapped_bytes += STATES * record->count * sizeof(float);
}

/* Starts to bring a record into its slot, if there is such a record. */
static void record_prefetch(struct storage *storage, size_t index)
{
    const struct record *record = &storage->records[index];
    float *states[STATES];
    tsw_tensor tensors[STATES];

    if (index >= storage->records_len)
        return;
    slot_states(storage, index, states);
    record_tensors(record, states, tensors);
    check(tsw_engine_swap_in(storage->engine, tensors, record_paths(record), STATES,
                             &storage->tickets[index % SLOTS]),
          "swap in");
    storage->swapped_bytes += STATES * record->count * sizeof(float);
}

static void record_wait(struct storage *storage, size_t index)
{
    const uint64_t start_ns = now_ns();
    check(tsw_ticket_wait(storage->engine, storage->tickets[index % SLOTS], TSW_WAIT_FOREVER, NULL),
          "swap in");
    storage->read_wait_ns += now_ns() - start_ns;
}

/* Writes the state before the first step: the weights are the masters, the moments are zero. */
static void storage_initialize(struct storage *storage, struct model *model)
{
    float *zeros = new_floats(storage->record_count_max);

    for (size_t i = 0; i < storage->records_len; i++) {
        float *const states[STATES] = {model->weights + storage->records[i].first, zeros, zeros};
        record_swap_out(storage, i, states);
    }
    free(zeros);
}

/* Brings the first records in while the model computes its gradients. The last update's writes may
 * still be on their way: a read takes effect after the writes submitted before it, so it is enough
 * that all of them are submitted. One that failed is reported by every read of its path. */
static void storage_begin_step(struct storage *storage)
{
    check(tsw_swapper_submit(storage->swapper), "submit");
    for (size_t i = 0; i < SLOTS; i++)
        record_prefetch(storage, i);
}

static void storage_update(struct storage *storage, struct model *model, int step)
{
    for (size_t i = 0; i < storage->records_len; i++) {
        const struct record *record = &storage->records[i];
        float *states[STATES];

        slot_states(storage, i, states);
        record_wait(storage, i);
        adam_update(states, model->gradients + record->first, record->count, step);
        memcpy(model->weights + record->first, states[MASTER], record->count * sizeof(float));
        record_swap_out(storage, i, states);
        record_prefetch(storage, i + SLOTS); /* into the same slot: its content is staged */
    }
}

/* Time spent waiting for reads, and by the swapper for free buffers and for its flushes. */
static uint64_t storage_waited_ns(const struct storage *storage)
{
    tsw_swapper_stats stats = {.struct_size = sizeof stats};
    check(tsw_swapper_get_stats(storage->swapper, &stats), "swapper statistics");
    return storage->read_wait_ns + stats.waited_ns;
}

/* ---- training ---- */

/* With `storage` the optimizer state is there; without, it is in `states`. */
struct training {
    struct model *model;
    struct storage *storage;
    float *states[STATES];
    uint64_t start_ns, shown_ns;
    double loss_first, loss_mean;
};

static void training_free(struct training *training)
{
    if (training->storage != NULL)
        storage_close(training->storage);
    for (int state = 0; state < STATES; state++)
        free(training->states[state]);
    model_free(training->model);
}

/* On a terminal one line that is rewritten ten times a second, else ten lines in all. */
static void show_progress(struct training *training, long step, long steps)
{
    const struct storage *storage = training->storage;
    const int terminal = isatty(STDOUT_FILENO), last = step == steps || interrupted;
    const uint64_t now = now_ns(), elapsed = now - training->start_ns;
    const long every = steps < 10 ? 1 : steps / 10;

    if (!last && (terminal ? now - training->shown_ns < 100000000u : step % every != 0 && step > 1))
        return;
    training->shown_ns = now;
    printf("%s%s step %4ld/%ld  loss %.3f", terminal ? "\r" : "",
           storage != NULL ? "on storage" : "in memory ", step, steps, training->loss_mean);
    if (storage != NULL)
        printf("  swapped %7.1f MiB  %.2f GiB/s  waiting %4.1f %%", mib(storage->swapped_bytes),
               (double)storage->swapped_bytes / (1 << 30) / ((double)elapsed / 1e9),
               100.0 * (double)storage_waited_ns(storage) / (double)elapsed);
    printf("%s", !terminal || last ? "\n" : "  ");
    fflush(stdout);
}

static void train_step(struct training *training, const struct text *text, int step)
{
    struct model *model = training->model;
    double loss;

    if (training->storage != NULL)
        storage_begin_step(training->storage);
    model_draw_batch(model, text);
    loss = model_forward(model);
    model_backward(model);
    if (training->storage != NULL) {
        storage_update(training->storage, model, step);
    } else {
        adam_update(training->states, model->gradients, model->parameters, step);
        memcpy(model->weights, training->states[MASTER], model->parameters * sizeof(float));
    }
    if (step == 1)
        training->loss_first = training->loss_mean = loss;
    training->loss_mean += (loss - training->loss_mean) * (step < 20 ? 1.0 / step : 0.05);
}

static void train(struct training *training, const struct text *text, long steps)
{
    for (long step = 1; step <= steps && !interrupted; step++) {
        train_step(training, text, (int)step);
        show_progress(training, step, steps);
    }
}

static void train_on_storage(struct training *training, struct storage *storage,
                             const struct text *text, const struct options *options)
{
    uint64_t state_bytes;

    training->model = model_new(text->alphabet, (size_t)options->hidden, (uint64_t)options->seed);
    state_bytes = STATES * training->model->parameters * sizeof(float);
    storage_open(storage, training->model, options);
    training->storage = storage;
    printf("model: %zu parameters, optimizer state %.1f MiB in %zu records of %d files\n"
           "pinned: %.1f MiB, %.0f %% of the state\n",
           training->model->parameters, mib(state_bytes), storage->records_len, STATES,
           mib(storage->pinned_bytes),
           100.0 * (double)storage->pinned_bytes / (double)state_bytes);
    training->start_ns = now_ns();
    storage_initialize(storage, training->model);
    train(training, text, options->steps);
    check(tsw_swapper_flush(storage->swapper, TSW_WAIT_FOREVER), "flush");
}

static void train_in_memory(struct training *training, const struct text *text,
                            const struct options *options)
{
    training->model = model_new(text->alphabet, (size_t)options->hidden, (uint64_t)options->seed);
    for (int state = 0; state < STATES; state++)
        training->states[state] = new_floats(training->model->parameters);
    memcpy(training->states[MASTER], training->model->weights,
           training->model->parameters * sizeof(float));
    training->start_ns = now_ns();
    train(training, text, options->steps);
}

/* ---- verification ---- */

/* Compares what is on storage, and the working copies, with the training in memory. */
static int verify(const struct training *stored, const struct training *reference)
{
    const struct storage *storage = stored->storage;
    const size_t weights_bytes = stored->model->parameters * sizeof(float);
    float *values = new_floats(storage->record_count_max);
    int different = 0;

    for (size_t i = 0; i < storage->records_len; i++) {
        const struct record *record = &storage->records[i];
        const size_t len_bytes = record->count * sizeof(float);
        const tsw_tensor tensor = {.data = values, .numel = record->count, .dtype = TSW_F32};
        for (int state = 0; state < STATES; state++) {
            memset(values, 0xff, len_bytes);
            check(tsw_swapper_swap_in(storage->swapper, &tensor, record_paths(record) + state, 1),
                  "swap in");
            if (memcmp(values, reference->states[state] + record->first, len_bytes) != 0) {
                printf("verify: %s differs\n", record->paths[state]);
                different++;
            }
        }
    }
    free(values);
    if (memcmp(stored->model->weights, reference->model->weights, weights_bytes) != 0) {
        printf("verify: the working copies of the weights differ\n");
        different++;
    }
    if (different == 0)
        printf("verify: equal bit for bit (%zu bytes)\n", STATES * weights_bytes);
    return different == 0;
}

/* ---- main ---- */

static void show_summary(const struct training *training)
{
    const struct storage *storage = training->storage;
    tsw_engine_stats stats = {.struct_size = sizeof stats};

    check(tsw_engine_get_stats(storage->engine, &stats), "engine statistics");
    printf("loss: %.3f at first, %.3f at last (nats per character)\n"
           "swapped: out %.1f MiB in %llu operations, in %.1f MiB in %llu operations, "
           "at most %llu in flight\n"
           "engine: %.1f MiB pinned, %.1f MiB bounced, %llu errors\n",
           training->loss_first, training->loss_mean, mib(stats.swap_out_bytes),
           (unsigned long long)stats.swap_out_operations_count, mib(stats.swap_in_bytes),
           (unsigned long long)stats.swap_in_operations_count,
           (unsigned long long)stats.in_flight_peak_count, mib(stats.pinned_bytes),
           mib(stats.bounced_bytes),
           (unsigned long long)(stats.swap_out_errors_count + stats.swap_in_errors_count));
}

static void show_help(void)
{
    puts("usage: train_text [OPTIONS] [FILE]...\n"
         "Trains a character-level language model on the files (by default this project's own\n"
         "sources and documents) while its optimizer state is kept on storage.\n\n"
         "  --steps N      updates to make (250)\n"
         "  --verify       train in memory too, and require the same bits\n"
         "  --dir D        where the state is kept meanwhile, in a temporary directory (.)\n"
         "  --hidden N     width of the two hidden layers, rounded down to a multiple of 8 (1280)\n"
         "  --seed N       of the weights and the batches (1)\n"
         "  --backend B    auto, io_uring, threads or memory (auto)\n"
         "  --help         this text");
}

static long parse_number(const char *name, const char *text, long min, long max)
{
    char *end;
    long number;
    errno = 0;
    number = strtol(text, &end, 10);
    if (*text == '\0' || *end != '\0' || errno != 0 || number < min || number > max) {
        fprintf(stderr, "--%s: %s is not a number from %ld to %ld\n", name, text, min, max);
        exit(EXIT_FAILURE);
    }
    return number;
}

static struct options parse_options(int argc, char **argv)
{
    static const struct option names[] = {
        {"steps", required_argument, NULL, 's'},  {"verify", no_argument, NULL, 'v'},
        {"dir", required_argument, NULL, 'd'},    {"hidden", required_argument, NULL, 'n'},
        {"seed", required_argument, NULL, 'r'},   {"backend", required_argument, NULL, 'b'},
        {"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0}};
    struct options options = {
        .directory = ".", .backend = "auto", .steps = 250, .hidden = 1280, .seed = 1};
    int option;

    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (option) {
        case 's': options.steps = parse_number("steps", optarg, 1, 1000000); break;
        case 'v': options.verify = 1; break;
        case 'd': options.directory = optarg; break;
        case 'n':
            options.hidden = parse_number("hidden", optarg, LANES, 16384) / LANES * LANES;
            break;
        case 'r': options.seed = parse_number("seed", optarg, 0, LONG_MAX); break;
        case 'b': options.backend = optarg; break;
        case 'h': show_help(); exit(EXIT_SUCCESS);
        default: exit(EXIT_FAILURE); /* getopt_long has said what is wrong */
        }
    }
    return options;
}

/* The training ends after the step, and everything is put away; a second signal ends at once. */
static void on_signal(int signal_number)
{
    interrupted = signal_number;
}

static void catch_signals(void)
{
    struct sigaction action = {0};
    action.sa_handler = on_signal;
    action.sa_flags = (int)SA_RESETHAND | SA_RESTART;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

int main(int argc, char **argv)
{
    const struct options options = parse_options(argc, argv);
    struct text text = {0};
    struct storage storage;
    struct training stored = {0}, reference = {0};
    int good = 1;

    catch_signals();
    for (int i = optind; i < argc; i++)
        text_add_file(&text, argv[i]);
    if (optind == argc)
        text_add_project(&text);
    text_finish(&text);
    if (text.len <= CONTEXT)
        fail("text", "too short to learn from");
    printf("text: %zu characters of %d kinds from %d files\n", text.len, text.used, text.files);

    train_on_storage(&stored, &storage, &text, &options);
    if (options.verify && !interrupted) {
        train_in_memory(&reference, &text, &options);
        if (!interrupted)
            good = verify(&stored, &reference);
        training_free(&reference);
    }
    show_summary(&stored);
    training_free(&stored);
    free(text.symbols);
    if (interrupted)
        return 128 + interrupted;
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
