/* What train_adam can be told on its command line. */
#ifndef TRAIN_OPTIONS_H
#define TRAIN_OPTIONS_H

#include "text_model.h"

#include <getopt.h>

enum { THREADS_MAX = 64, SETTINGS_MAX = 16, RANKS_MAX = 16 };

struct options {
    const char *store; /* NULL for a temporary directory */
    const char *init_from, *export_to; /* safetensors files, or NULL */
    const char *snapshot, *restore;    /* directories with one of each rank, or NULL */
    const char *settings[SETTINGS_MAX];
    uint32_t disk_types[STATES];
    int settings_len, verify, resume;
    long steps, hidden, seed, threads, crash_at, ranks;
};

static inline void show_help(void)
{
    puts("usage: train_adam [OPTIONS] [FILE]...\n"
         "Trains a character-level language model on the files (by default this project's own\n"
         "sources and documents) while its optimizer state is kept on storage.\n\n"
         "  --steps N            train up to this step (100)\n"
         "  --store D            directory of the store; what is there is replaced (a temporary one)\n"
         "  --resume             go on with the training that --store holds\n"
         "  --ranks N            cut every record into N parts, each in a store of its own (1)\n"
         "  --snapshot D         at the end copy the store of each rank to D/rank0, D/rank1, ...\n"
         "  --restore D          begin with such copies\n"
         "  --init FILE          weights to begin with, from a safetensors file or the index of several\n"
         "  --export FILE        write weights and moments at the end, as safetensors\n"
         "  --verify             train in memory too, and require the same bits\n"
         "  --crash-at N         die by SIGKILL in the middle of step N\n"
         "  --threads N          threads that update (2)\n"
         "  --state-types M,A,S  types on storage of weights and moments: f32 or bf16 (f32,f32,f32)\n"
         "  --set KEY=VALUE      any key of the configuration, such as sync=none\n"
         "  --hidden N           width of the hidden layers, rounded down to a multiple of 8 (1280)\n"
         "  --seed N             of the weights and the batches (1)\n"
         "  --help               this text");
}

static inline long parse_number(const char *name, const char *text, long min, long max)
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

/* "f32,bf16,bf16": one type for each state. */
static inline void parse_types(const char *text, uint32_t types[STATES])
{
    char names[STATES][8];
    char rest;

    if (sscanf(text, "%7[^,],%7[^,],%7[^,]%c", names[0], names[1], names[2], &rest) != STATES)
        fail("--state-types", "three types are expected, such as f32,bf16,bf16");
    for (int state = 0; state < STATES; state++) {
        if (strcmp(names[state], "f32") != 0 && strcmp(names[state], "bf16") != 0)
            fail("--state-types", "f32 and bf16 are legal");
        types[state] = names[state][0] == 'f' ? TSW_F32 : TSW_BF16;
    }
}

static inline struct options parse_options(int argc, char **argv)
{
    static const struct option names[] = {
        {"steps", required_argument, NULL, 's'},    {"store", required_argument, NULL, 'd'},
        {"init", required_argument, NULL, 'i'},     {"export", required_argument, NULL, 'x'},
        {"resume", no_argument, NULL, 'r'},         {"verify", no_argument, NULL, 'v'},
        {"crash-at", required_argument, NULL, 'c'}, {"threads", required_argument, NULL, 't'},
        {"set", required_argument, NULL, 'k'},      {"state-types", required_argument, NULL, 'y'},
        {"hidden", required_argument, NULL, 'n'},   {"seed", required_argument, NULL, 'e'},
        {"ranks", required_argument, NULL, 'p'},    {"snapshot", required_argument, NULL, 'o'},
        {"restore", required_argument, NULL, 'b'},  {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0}};
    struct options options;
    int option;

    memset(&options, 0, sizeof options);
    for (int state = 0; state < STATES; state++)
        options.disk_types[state] = TSW_F32;
    options.steps = 100;
    options.threads = 2;
    options.hidden = 1280;
    options.seed = 1;
    options.ranks = 1;
    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (option) {
        case 's': options.steps = parse_number("steps", optarg, 0, 1000000); break;
        case 'd': options.store = optarg; break;
        case 'r': options.resume = 1; break;
        case 'i': options.init_from = optarg; break;
        case 'x': options.export_to = optarg; break;
        case 'p': options.ranks = parse_number("ranks", optarg, 1, RANKS_MAX); break;
        case 'o': options.snapshot = optarg; break;
        case 'b': options.restore = optarg; break;
        case 'v': options.verify = 1; break;
        case 'c': options.crash_at = parse_number("crash-at", optarg, 1, 1000000); break;
        case 't': options.threads = parse_number("threads", optarg, 1, THREADS_MAX); break;
        case 'k':
            if (options.settings_len == SETTINGS_MAX)
                fail("--set", "too many");
            options.settings[options.settings_len++] = optarg;
            break;
        case 'y': parse_types(optarg, options.disk_types); break;
        case 'n':
            options.hidden = parse_number("hidden", optarg, LANES, 16384) / LANES * LANES;
            break;
        case 'e': options.seed = parse_number("seed", optarg, 0, LONG_MAX); break;
        case 'h': show_help(); exit(EXIT_SUCCESS);
        default: exit(EXIT_FAILURE); /* getopt_long has said what is wrong */
        }
    }
    if (options.resume && options.store == NULL)
        fail("--resume", "needs --store");
    if ((options.resume || options.restore != NULL) && options.init_from != NULL)
        fail("--init", "what is resumed or restored has its weights");
    if (options.resume && options.restore != NULL)
        fail("--restore", "a store is resumed or restored");
    if (options.ranks > 1 && (options.init_from != NULL || options.export_to != NULL))
        fail("--init and --export", "one rank is expected");
    return options;
}

#endif
