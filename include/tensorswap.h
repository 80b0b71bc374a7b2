/* tensorswap: keeps training state on NVMe by swapping tensors between pinned memory and files.
 *
 * Generated from the Rust sources by cbindgen; do not edit. Apache-2.0 OR MIT.
 *
 * The shortest use, without its checks:
 *
 *     tsw_engine *engine;
 *     tsw_swapper *swapper;
 *     tsw_buffer *buffers[2];
 *     float *values = ...;
 *     tsw_tensor tensor = {0};                        reserved fields must be zero
 *     const char *path = "/mnt/nvme/layer0";
 *
 *     tsw_engine_new(NULL, &engine);                  does the I/O
 *     tsw_swapper_new(engine, NULL, &swapper);        stages tensors in pinned buffers
 *     for (int i = 0; i < 2; i++)
 *         tsw_buffer_new(engine, 64 << 20, &buffers[i]);
 *     tsw_swapper_add_buffers(swapper, buffers, 2, TSW_F32);
 *
 *     tensor.data = values;
 *     tensor.numel = 1000000;
 *     tensor.dtype = TSW_F32;
 *     tsw_swapper_swap_out(swapper, &tensor, &path, 1);   values may be reused from here on
 *     tsw_swapper_flush(swapper, TSW_WAIT_FOREVER);       and now they are in the file
 *     tsw_swapper_swap_in(swapper, &tensor, &path, 1);    and here they are back
 *
 *     tsw_swapper_free(swapper);
 *     for (int i = 0; i < 2; i++)
 *         tsw_buffer_free(buffers[i]);
 *     tsw_engine_free(engine);
 *
 * Without a copy: tsw_engine_swap_out and tsw_engine_swap_in take tensors in any memory and give a
 * ticket at once; tsw_ticket_wait, or tsw_engine_event_fd and tsw_ticket_poll, tell the end.
 *
 * A training step with the optimizer state on storage, without its checks:
 *
 *     tsw_config *config = tsw_config_new();
 *     tsw_optimizer *optimizer;
 *     tsw_parameter_view view = {.struct_size = sizeof view};
 *
 *     tsw_config_set(config, "path", "/mnt/nvme/run1");
 *     tsw_optimizer_new(engine, config, &optimizer);      opens the store there, or makes one
 *     tsw_optimizer_add_state(optimizer, "master", TSW_F32, TSW_F32);
 *     tsw_optimizer_add_state(optimizer, "exp_avg", TSW_F32, TSW_F32);
 *     tsw_optimizer_add_state(optimizer, "exp_avg_sq", TSW_F32, TSW_F32);
 *     tsw_optimizer_add_parameter(optimizer, 7, "layer0", 1000000);
 *     if (tsw_optimizer_step_number(optimizer) == 0) {   nothing was trained yet
 *         tsw_optimizer_initialize_parameters(optimizer, &id, &weights, 1);
 *         tsw_optimizer_commit(optimizer);                durable as step 0
 *     }                                                   else tsw_optimizer_step_number tells where
 *
 *     for each step:
 *         tsw_optimizer_swap_out_gradients(optimizer, 7, &offset, &gradient, 1);
 *         tsw_optimizer_step_begin(optimizer, NULL, 0);   all parameters
 *         while (tsw_optimizer_step_next(optimizer, &view) == TSW_OK) {
 *             update view.states[i].data with view.gradient.data, in place
 *             tsw_optimizer_step_done(optimizer, view.id, 1);
 *         }                                               `views_max` threads may loop here
 *         tsw_optimizer_set_user_data(optimizer, ...);    what else a resumed run needs
 *         tsw_optimizer_step_end(optimizer);              durable in the background
 *
 *     tsw_optimizer_commit(optimizer);                    waits until the last step is durable
 *     tsw_optimizer_free(optimizer);
 *
 * Status. A function that can fail returns a tsw_status: 0 is success, negative an error. Errors
 * found during the call are told by tsw_last_error_message, one line with operation, path, offset
 * and errno; those of background I/O come out of the ticket, of the flush, and of any later use of
 * the same path until it is written again. Nothing is lost silently, nothing aborts, nothing prints.
 *
 * Outputs are set to NULL or zero first and written only on success. Structures that the library
 * fills in begin with struct_size: set it to sizeof the structure first; calls leave it as it is.
 *
 * Ownership.
 *
 *     what                      whose, until when
 *     tsw_config                yours; every object copies what it takes
 *     tsw_engine                yours; what is made with it keeps what it needs of it alive
 *     tsw_buffer                yours; while a swapper holds it, leave its memory alone
 *     tsw_swapper               yours; gives its buffers back when it is released or freed
 *     tsw_optimizer             yours; its store is locked until it is freed
 *     memory of a view          lent to you until the parameter is given back
 *     tsw_ticket                ends when its completion was delivered, once
 *     memory of a tensor        the library's until the ticket is done; of a swapper or optimizer
 *                               call, yours again when the call returns
 *     registered memory         the library's until on_release runs or tsw_buffer_free returns
 *     lists, paths, keys        yours; copied during the call
 *     const char * results      the library's; valid as long as it is loaded
 *
 * Every tsw_..._free takes NULL, never fails, and is legal in any order. It waits until the kernel
 * has let go of the memory concerned. Using a handle after its free is undefined.
 *
 * Threads. Engine, tickets, buffers, tsw_optimizer_step_next, tsw_optimizer_step_done, and every
 * function that takes a const object: any thread, concurrently. A configuration, a swapper, and the
 * rest of the optimizer: one thread at a time; a second one gets TSW_ERR_BUSY. In the child of a fork
 * the objects of the parent answer TSW_ERR_FORKED, and their free does nothing: make new ones there.
 *
 * Any function that takes a handle may also return TSW_ERR_NULL_ARGUMENT, TSW_ERR_FORKED,
 * TSW_ERR_INTERNAL (a defect of the library, stopped at this border) and, from then on for that
 * object, TSW_ERR_POISONED. */

#ifndef TENSORSWAP_H
#define TENSORSWAP_H

#include <stddef.h>
#include <stdint.h>

/**
 * Version of this header as text. `tsw_version` tells the library's.
 */
#define TSW_VERSION "0.1.0"

/**
 * Number of the binary interface that this header describes. `tsw_abi` tells the library's.
 */
#define TSW_ABI 1

/**
 * Version of this header: the first of three numbers.
 */
#define TSW_VERSION_MAJOR 0

/**
 * Version of this header: the second of three numbers.
 */
#define TSW_VERSION_MINOR 1

/**
 * Version of this header: the third of three numbers.
 */
#define TSW_VERSION_PATCH 0

/**
 * Log level: nothing.
 */
#define TSW_LOG_OFF 0

/**
 * Log level: something is lost.
 */
#define TSW_LOG_ERROR 1

/**
 * Log level: it works, but not as asked.
 */
#define TSW_LOG_WARN 2

/**
 * Log level: worth knowing once.
 */
#define TSW_LOG_INFO 3

/**
 * Log level: for finding defects.
 */
#define TSW_LOG_DEBUG 4

/**
 * Log level: all there is. What every operation did is in the timeline (key `trace`), not in the log.
 */
#define TSW_LOG_TRACE 5

/**
 * Timeout of a function that waits: as long as it takes.
 */
#define TSW_WAIT_FOREVER UINT64_MAX

/**
 * Element type: raw bytes; as the type of a buffer: anything goes.
 */
#define TSW_BYTES 0

/**
 * Element type: IEEE 754 binary32.
 */
#define TSW_F32 1

/**
 * Element type: IEEE 754 binary16.
 */
#define TSW_F16 2

/**
 * Element type: bfloat16: the upper half of a binary32.
 */
#define TSW_BF16 3

/**
 * Element type: IEEE 754 binary64.
 */
#define TSW_F64 4

/**
 * Element type: 8-bit float, 4 exponent and 3 mantissa bits.
 */
#define TSW_F8_E4M3 5

/**
 * Element type: 8-bit float, 5 exponent and 2 mantissa bits.
 */
#define TSW_F8_E5M2 6

/**
 * Element type: signed 8-bit integer.
 */
#define TSW_I8 7

/**
 * Element type: signed 16-bit integer.
 */
#define TSW_I16 8

/**
 * Element type: signed 32-bit integer.
 */
#define TSW_I32 9

/**
 * Element type: signed 64-bit integer.
 */
#define TSW_I64 10

/**
 * Element type: unsigned 8-bit integer.
 */
#define TSW_U8 11

/**
 * Element type: unsigned 16-bit integer.
 */
#define TSW_U16 12

/**
 * Element type: unsigned 32-bit integer.
 */
#define TSW_U32 13

/**
 * Element type: unsigned 64-bit integer.
 */
#define TSW_U64 14

/**
 * Element type: one byte, 0 or 1.
 */
#define TSW_BOOL 15

/**
 * Flag of a tensor: a gradient is added to what is there already. Without effect on files.
 */
#define TSW_TENSOR_ACCUMULATE 1

/**
 * Flag of a tensor: the file is not cut to the end of this request, even by a tensor at its
 * beginning.
 */
#define TSW_TENSOR_KEEP_LENGTH 2

/**
 * No parameter has this id.
 */
#define TSW_NO_PARAMETER UINT64_MAX

/**
 * The most states a parameter can have.
 */
#define TSW_STATES_MAX 8

/**
 * The most bytes of user data.
 */
#define TSW_USER_DATA_BYTES_MAX (1 << 20)

/**
 * Pinned memory that storage reads and writes without a copy.
 *
 * Made by `tsw_buffer_new` or `tsw_buffer_register`, freed by `tsw_buffer_free`. A pointer anywhere
 * inside one counts as pinned.
 */
typedef struct tsw_buffer tsw_buffer;

/**
 * A configuration: keys and values as text.
 *
 * Made by `tsw_config_new`, freed by `tsw_config_free`. An object made with it copies what it
 * takes, so it may be changed or freed right after. One configuration may be given to every
 * object; each takes the keys marked for it (`tsw_config_key_help`).
 */
typedef struct tsw_config tsw_config;

/**
 * An engine: moves tensors between memory and files.
 *
 * Made by `tsw_engine_new`, freed by `tsw_engine_free`. Buffers and swappers made with it keep what
 * they need of it alive, so the order of freeing is free.
 */
typedef struct tsw_engine tsw_engine;

/**
 * Keeps the optimizer state of parameters in a store on storage, and brings it in to be updated.
 *
 * Every parameter has a record: all of its states together, the master parameter first, then the
 * moments. Made by `tsw_optimizer_new`, freed by `tsw_optimizer_free`. Used by one thread at a
 * time, but for `tsw_optimizer_step_next`, `tsw_optimizer_step_done` and every function that takes
 * a const optimizer, which any number of threads may call at once.
 */
typedef struct tsw_optimizer tsw_optimizer;

/**
 * Swaps tensors out and in through pinned buffers of its own.
 *
 * Made by `tsw_swapper_new`, freed by `tsw_swapper_free`. Used by one thread at a time.
 */
typedef struct tsw_swapper tsw_swapper;

/**
 * The outcome of a call: 0 is success, positive is information, negative is an error. The numbers
 * are frozen for ever; a later version may add some, so treat an unknown negative one as an error.
 */
typedef int32_t tsw_status;

/**
 * Receives an event of the library: a level (`TSW_LOG_ERROR` to `TSW_LOG_TRACE`), the part of the
 * library it comes from, and one line of text.
 *
 * It runs on the thread on which the event happens, and on several at once. The texts are valid
 * during the call only. It must not throw, must not call `tsw_set_log`, and must not call a
 * function that waits or frees.
 */
typedef void (*tsw_log_fn)(void *user_data, uint32_t level, const char *target, const char *message);

/**
 * What an engine has done since it was made, and what it is doing.
 *
 * Set `struct_size` to `sizeof(tsw_engine_stats)` before the call that fills it in. Later versions
 * add fields at the end.
 */
typedef struct tsw_engine_stats {
    /**
     * Size of this structure in bytes; filled in by the caller.
     */
    uint32_t struct_size;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * Operations that ended well, memory to storage.
     */
    uint64_t swap_out_operations_count;
    /**
     * Bytes of tensors moved, memory to storage.
     */
    uint64_t swap_out_bytes;
    /**
     * Operations under way, memory to storage.
     */
    uint64_t swap_out_in_flight_count;
    /**
     * The most operations that were under way at once, memory to storage.
     */
    uint64_t swap_out_in_flight_peak_count;
    /**
     * Operations submitted again after EINTR or EAGAIN, memory to storage.
     */
    uint64_t swap_out_retries_count;
    /**
     * Transfers that moved less than asked and were continued, memory to storage.
     */
    uint64_t swap_out_short_transfers_count;
    /**
     * Files that had to go through the page cache, memory to storage.
     */
    uint64_t swap_out_fallbacks_count;
    /**
     * Files of requests that failed, memory to storage.
     */
    uint64_t swap_out_errors_count;
    /**
     * Operations that ended well, storage to memory.
     */
    uint64_t swap_in_operations_count;
    /**
     * Bytes of tensors moved, storage to memory.
     */
    uint64_t swap_in_bytes;
    /**
     * Operations under way, storage to memory.
     */
    uint64_t swap_in_in_flight_count;
    /**
     * The most operations that were under way at once, storage to memory.
     */
    uint64_t swap_in_in_flight_peak_count;
    /**
     * Operations submitted again after EINTR or EAGAIN, storage to memory.
     */
    uint64_t swap_in_retries_count;
    /**
     * Transfers that moved less than asked and were continued, storage to memory.
     */
    uint64_t swap_in_short_transfers_count;
    /**
     * Files that had to go through the page cache, storage to memory.
     */
    uint64_t swap_in_fallbacks_count;
    /**
     * Files of requests that failed, storage to memory.
     */
    uint64_t swap_in_errors_count;
    /**
     * Requests taken in.
     */
    uint64_t requests_count;
    /**
     * Requests under way.
     */
    uint64_t requests_in_flight_count;
    /**
     * Operations under way, both directions.
     */
    uint64_t in_flight_count;
    /**
     * The most operations that were under way at once, both directions.
     */
    uint64_t in_flight_peak_count;
    /**
     * Bytes that went through a bounce block, because memory or file were not aligned.
     */
    uint64_t bounced_bytes;
    /**
     * Files that are open.
     */
    uint64_t open_files_count;
    /**
     * Bytes of pinned buffers, the library's own and registered ones.
     */
    uint64_t pinned_bytes;
} tsw_engine_stats;

/**
 * Memory of the caller and its place in a file. 64 bytes, frozen.
 *
 * Set everything to zero first (`tsw_tensor tensor = {0}`): what is reserved must be zero.
 *
 * `data` belongs to the library from the submission until the request is done: it must stay valid,
 * must not be written while it goes out, and not be touched while it comes in. Any address, any
 * length and any file offset will do; a pointer into a `tsw_buffer`, with address, length and
 * offset multiples of 4096, moves without a copy.
 */
typedef struct tsw_tensor {
    /**
     * The first element; may be NULL where `numel` is 0.
     */
    void *data;
    /**
     * How many elements.
     */
    uint64_t numel;
    /**
     * Element type: `TSW_BYTES`, `TSW_F32`, ...
     */
    uint32_t dtype;
    /**
     * 0, or `TSW_TENSOR_...` flags.
     */
    uint32_t flags;
    /**
     * Where in the file the first byte is, in bytes.
     */
    uint64_t file_offset;
    /**
     * Any number of the caller's; completions carry it.
     */
    uint64_t user_tag;
    /**
     * Must be zero.
     */
    uint64_t reserved[3];
} tsw_tensor;

/**
 * One pending request. 0 is never valid; a ticket that has ended is recognized and refused.
 */
typedef uint64_t tsw_ticket;

/**
 * Receives registered memory back: its owner's pointer, its address and its length.
 *
 * Runs exactly once, when nothing touches the memory any more, on any thread. It may free the
 * memory. It must not throw, and must not call a function that waits.
 */
typedef void (*tsw_release_fn)(void *user_data, void *data, uint64_t len_bytes);

/**
 * How a request ended.
 *
 * Set `struct_size` to `sizeof(tsw_completion)` before the call that fills it in; in an array, that
 * of the first element, which is the distance of the elements.
 */
typedef struct tsw_completion {
    /**
     * Size of this structure in bytes; filled in by the caller.
     */
    uint32_t struct_size;
    /**
     * `TSW_OK`, or the first error of the request.
     */
    tsw_status status;
    /**
     * The errno behind it; 0 where there is none.
     */
    int32_t os_error;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * Index in the request's list of the tensor that failed first; UINT64_MAX where none did.
     */
    uint64_t failed_index;
    /**
     * The ticket that ended with this.
     */
    tsw_ticket ticket;
    /**
     * Bytes of tensors that were moved.
     */
    uint64_t bytes_done;
    /**
     * Nanoseconds from submission to completion.
     */
    uint64_t elapsed_ns;
    /**
     * The tag of the failed tensor, else of the first one.
     */
    uint64_t user_tag;
    /**
     * What happened, in one line; empty on success. Of a long path only the end is kept.
     */
    char message[192];
} tsw_completion;

/**
 * What a swapper has done since it was made, and what it is doing.
 *
 * Set `struct_size` to `sizeof(tsw_swapper_stats)` before the call that fills it in. Later
 * versions add fields at the end.
 */
typedef struct tsw_swapper_stats {
    /**
     * Size of this structure in bytes; filled in by the caller.
     */
    uint32_t struct_size;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * Tensors taken for swapping out.
     */
    uint64_t swap_out_tensors_count;
    /**
     * Their elements.
     */
    uint64_t swap_out_elements_count;
    /**
     * Their bytes.
     */
    uint64_t swap_out_bytes;
    /**
     * Tensors swapped in.
     */
    uint64_t swap_in_tensors_count;
    /**
     * Their elements.
     */
    uint64_t swap_in_elements_count;
    /**
     * Their bytes.
     */
    uint64_t swap_in_bytes;
    /**
     * Bytes being written or read.
     */
    uint64_t in_flight_bytes;
    /**
     * The most bytes that were being written or read at once.
     */
    uint64_t in_flight_peak_bytes;
    /**
     * Nanoseconds that callers waited: for a free buffer, for data, for a flush.
     */
    uint64_t waited_ns;
    /**
     * Swap-ins that went straight into pinned memory of the caller.
     */
    uint64_t copies_avoided_count;
    /**
     * Their bytes.
     */
    uint64_t copies_avoided_bytes;
    /**
     * Buffers given to the swapper.
     */
    uint64_t buffers_count;
    /**
     * Those of them that are free.
     */
    uint64_t buffers_free_count;
    /**
     * Those of them that are being written or read.
     */
    uint64_t buffers_in_flight_count;
    /**
     * Operations that failed.
     */
    uint64_t errors_count;
} tsw_swapper_stats;

/**
 * How often something ran, and how long it took; all 0 where it never did.
 *
 * Set `struct_size` to `sizeof(tsw_timer)` before the call that fills it in.
 */
typedef struct tsw_timer {
    /**
     * Size of this structure in bytes; filled in by the caller.
     */
    uint32_t struct_size;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * How often it ran.
     */
    uint64_t count;
    /**
     * All of them together, in nanoseconds.
     */
    uint64_t total_ns;
    /**
     * The shortest, in nanoseconds.
     */
    uint64_t min_ns;
    /**
     * The longest, in nanoseconds.
     */
    uint64_t max_ns;
    /**
     * Half of them took at most this long; at most 12.5 % too high, never too low.
     */
    uint64_t p50_ns;
    /**
     * 99 % of them took at most this long; at most 12.5 % too high, never too low.
     */
    uint64_t p99_ns;
} tsw_timer;

/**
 * One piece of a parameter, in memory or in a raw file. 112 bytes, frozen.
 *
 * Set everything to zero first (`tsw_partition piece = {0}`): what is reserved must be zero.
 */
typedef struct tsw_partition {
    /**
     * The parameter.
     */
    uint64_t param_id;
    /**
     * Elements of the parameter before the piece.
     */
    uint64_t offset;
    /**
     * The piece, f32, f16 or bf16. With a `path`, `numel`, `dtype` and `file_offset` tell where it
     * lies in that file, and `data` may be NULL.
     */
    tsw_tensor tensor;
    /**
     * The file, or NULL where the piece is in memory.
     */
    const char *path;
    /**
     * Must be zero.
     */
    uint64_t reserved[3];
} tsw_partition;

/**
 * Elements of one state, or of the gradient, in memory.
 */
typedef struct tsw_state_view {
    /**
     * The first element, at a multiple of 64 bytes; NULL where there is nothing.
     */
    void *data;
    /**
     * How many elements.
     */
    uint64_t numel;
    /**
     * Element type: `TSW_F32`, ...
     */
    uint32_t dtype;
    /**
     * Zero.
     */
    uint32_t reserved;
} tsw_state_view;

/**
 * A parameter in pinned memory, the caller's to read and write until it is given back.
 *
 * Set `struct_size` to `sizeof(tsw_parameter_view)` before the call that fills it in. The memory
 * ends with `tsw_optimizer_step_done`, `tsw_optimizer_swap_out_state` or
 * `tsw_optimizer_release_state` of the parameter.
 */
typedef struct tsw_parameter_view {
    /**
     * Size of this structure in bytes; filled in by the caller.
     */
    uint32_t struct_size;
    /**
     * How many of `states` there are.
     */
    uint32_t states_len;
    /**
     * The parameter; `TSW_NO_PARAMETER` where the call gave none.
     */
    uint64_t id;
    /**
     * Its elements.
     */
    uint64_t numel;
    /**
     * The gradient, in the type that state 0 has in memory. `data` is NULL where no region was
     * swapped out; otherwise regions that were not are zero.
     */
    tsw_state_view gradient;
    /**
     * The states, in the order of `tsw_optimizer_add_state`; the first is the master parameter.
     */
    tsw_state_view states[TSW_STATES_MAX];
} tsw_parameter_view;

/**
 * What an optimizer has done since it was made, and what its last step was like.
 *
 * Set `struct_size` to `sizeof(tsw_optimizer_stats)` before the call that fills it in. Later
 * versions add fields at the end.
 */
typedef struct tsw_optimizer_stats {
    /**
     * Size of this structure in bytes; filled in by the caller.
     */
    uint32_t struct_size;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * Parameters registered.
     */
    uint64_t parameters_count;
    /**
     * Steps done, counting from the store's beginning.
     */
    uint64_t steps_count;
    /**
     * Commits made durable by this object.
     */
    uint64_t commits_count;
    /**
     * The last step that is durable.
     */
    uint64_t durable_step;
    /**
     * Bytes of records read since the last `tsw_optimizer_step_begin`.
     */
    uint64_t step_read_bytes;
    /**
     * Bytes of records written since the last `tsw_optimizer_step_begin`.
     */
    uint64_t step_written_bytes;
    /**
     * Bytes of records read ever.
     */
    uint64_t read_bytes;
    /**
     * Bytes of records written ever.
     */
    uint64_t written_bytes;
    /**
     * Records given out without being read, because they were still in memory.
     */
    uint64_t cache_hits_count;
    /**
     * Records that had to be read before they were given out.
     */
    uint64_t cache_misses_count;
    /**
     * Nanoseconds in which callers waited for a record to be read.
     */
    uint64_t wait_read_ns;
    /**
     * Nanoseconds in which callers waited for records to be written, or for a commit.
     */
    uint64_t wait_write_ns;
    /**
     * Nanoseconds in which callers held views, summed over views.
     */
    uint64_t update_ns;
    /**
     * Of the last step: nanoseconds from `tsw_optimizer_step_begin` to `tsw_optimizer_step_end`.
     */
    uint64_t step_ns;
    /**
     * Of the last step: nanoseconds in which records were being read or written.
     */
    uint64_t io_floor_ns;
    /**
     * Of the last step: nanoseconds in which at least one view was out.
     */
    uint64_t compute_floor_ns;
    /**
     * Pinned memory, as computed from the parameters and the options.
     */
    uint64_t pinned_computed_bytes;
    /**
     * Pinned memory in use by records now.
     */
    uint64_t pinned_used_bytes;
    /**
     * The most that was in use.
     */
    uint64_t pinned_peak_bytes;
    /**
     * Memory that holds gradients now.
     */
    uint64_t gradient_memory_bytes;
    /**
     * Bytes of gradients written to storage ever.
     */
    uint64_t gradient_spilled_bytes;
    /**
     * Checksums that did not match ever.
     */
    uint64_t checksum_errors_count;
    /**
     * Bytes of the store's data files that records take, in all directories.
     */
    uint64_t store_bytes;
    /**
     * Bytes that were written to records since the store was made, in all runs.
     */
    uint64_t store_written_bytes;
} tsw_optimizer_stats;

/**
 * Success.
 */
#define TSW_OK 0

/**
 * No more items. Information, not an error.
 */
#define TSW_END 1

/**
 * A pointer that must not be NULL is NULL; the message names it.
 */
#define TSW_ERR_NULL_ARGUMENT (-1)

/**
 * An argument is outside of what the function accepts; mend the call.
 */
#define TSW_ERR_INVALID_ARGUMENT (-2)

/**
 * The tensor's element type is not the one agreed on; mend the call.
 */
#define TSW_ERR_DTYPE_MISMATCH (-3)

/**
 * The ticket was never given out, or its completion was delivered already.
 */
#define TSW_ERR_BAD_TICKET (-4)

/**
 * No parameter has this id.
 */
#define TSW_ERR_UNKNOWN_PARAMETER (-5)

/**
 * A configuration key or value is not legal; the message lists what is.
 */
#define TSW_ERR_CONFIG (-6)

/**
 * The object belongs to the parent of this forked process; make a new one.
 */
#define TSW_ERR_FORKED (-7)

/**
 * The object is in use, or a bound is reached; later it can succeed.
 */
#define TSW_ERR_BUSY (-20)

/**
 * No pinned buffer is to be had; give buffers first.
 */
#define TSW_ERR_NO_BUFFERS (-21)

/**
 * The engine takes nothing any more.
 */
#define TSW_ERR_SHUT_DOWN (-22)

/**
 * The library met a defect inside this object earlier; it can only be freed.
 */
#define TSW_ERR_POISONED (-23)

/**
 * The time given for waiting is over; wait again.
 */
#define TSW_ERR_TIMED_OUT (-24)

/**
 * The operation was cancelled.
 */
#define TSW_ERR_CANCELLED (-25)

/**
 * Another object, of this process or another one, holds the lock.
 */
#define TSW_ERR_LOCKED (-26)

/**
 * Storage failed; `tsw_last_error_os` tells the errno.
 */
#define TSW_ERR_IO (-40)

/**
 * Storage, or the quota on it, is full.
 */
#define TSW_ERR_NO_SPACE (-41)

/**
 * A file or directory does not exist.
 */
#define TSW_ERR_NOT_FOUND (-42)

/**
 * What is stored is shorter, or of another size, than asked for.
 */
#define TSW_ERR_SIZE_MISMATCH (-43)

/**
 * What is stored is not what was written.
 */
#define TSW_ERR_CHECKSUM (-44)

/**
 * Access is not permitted.
 */
#define TSW_ERR_PERMISSION (-45)

/**
 * The structure on storage is damaged.
 */
#define TSW_ERR_CORRUPT (-46)

/**
 * Memory could not be allocated.
 */
#define TSW_ERR_NO_MEMORY (-60)

/**
 * Memory could not be locked: raise RLIMIT_MEMLOCK or set `pin` to prefer.
 */
#define TSW_ERR_MEMLOCK (-61)

/**
 * The budget of pinned memory is too small; the message names the bytes needed.
 */
#define TSW_ERR_BUDGET (-62)

/**
 * The kernel, the file system or this build cannot do it.
 */
#define TSW_ERR_UNSUPPORTED (-63)

/**
 * A defect of the library; the object is poisoned.
 */
#define TSW_ERR_INTERNAL (-90)

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Tell the name of a status, such as "TSW_ERR_NO_SPACE".
 *
 * Never NULL: a number that is no status gives "TSW_ERR_UNKNOWN".
 *
 * Ownership: the text is the library's and lives as long as it is loaded.
 * Threads: any. Errors: none.
 */
const char *tsw_status_name(tsw_status status);

/**
 * Tell whether the same call can succeed later without the caller changing its arguments: 1 for
 * such a status, else 0.
 *
 * Those are BUSY, NO_BUFFERS, TIMED_OUT, CANCELLED, LOCKED, NO_SPACE, NO_MEMORY and MEMLOCK. Reading
 * what a cancelled swap-out left is CANCELLED until somebody writes it again: bound your attempts.
 *
 * Threads: any. Errors: none.
 */
uint32_t tsw_status_is_retryable(tsw_status status);

/**
 * Tell the number of the binary interface that the library was built with.
 *
 * A program that loads the library by name compares it with `TSW_ABI` of the header it was
 * compiled with: while they are equal, every function of that header is there with its meaning.
 *
 * Threads: any. Errors: none.
 */
uint32_t tsw_abi(void);

/**
 * Tell the version of the library as text, such as "0.1.0".
 *
 * Ownership: the text is the library's and lives as long as it is loaded.
 * Threads: any. Errors: none.
 */
const char *tsw_version(void);

/**
 * Copy the message of this thread's last failed call, and return its length.
 *
 * One line in UTF-8 that names what was done, the path, the offset and the errno. At most
 * `cap` bytes are written, with the NUL; the length returned is that of the whole message without
 * the NUL, as with snprintf. `buf` may be NULL where `cap` is 0. A call that succeeds leaves the
 * message as it is, so ask only after a failure; it is empty (0) before the first one.
 *
 * Threads: any; each has its own message. Errors: none.
 */
size_t tsw_last_error_message(char *buf, size_t cap);

/**
 * Tell the errno behind this thread's last failed call; 0 where there was none.
 *
 * Threads: any; each has its own. Errors: none.
 */
int32_t tsw_last_error_os(void);

/**
 * Receive the library's log, up to a level.
 *
 * The library prints nothing by itself; without this call its events go nowhere. The callback is
 * the process's: setting another one replaces it, and NULL or `TSW_LOG_OFF` ends it. When this
 * function returns, no call of the earlier callback runs or will begin.
 *
 * Ownership: `user_data` stays the caller's and must stay valid until the callback is replaced.
 * Threads: any, except from inside a callback.
 * Errors: INVALID_ARGUMENT for a level above `TSW_LOG_TRACE`; BUSY from inside a callback, or
 * where a Rust program has installed another receiver. The earlier callback then stays.
 */
tsw_status tsw_set_log(tsw_log_fn fn_or_null, void *user_data, uint32_t level);

/**
 * Make a configuration in which every key has its default.
 *
 * Returns NULL where memory is short.
 *
 * Ownership: the caller's, to be freed by `tsw_config_free`.
 * Threads: any.
 */
tsw_config *tsw_config_new(void);

/**
 * Free a configuration. Objects that were made with it are not affected. NULL is fine.
 *
 * Threads: any; nobody else may use it any more. Errors: none.
 */
void tsw_config_free(tsw_config *config);

/**
 * Set a key.
 *
 * Sizes are bytes or have a unit: "4096", "1MiB", "2GiB". Keys and values are UTF-8 text;
 * `tsw_config_keys` and its companions list the keys.
 *
 * Ownership: both texts are copied.
 * Threads: one at a time for each configuration.
 * Errors: CONFIG for an unknown key or a value that is not legal: the message names the nearest
 * key or the legal values, and nothing has changed; NULL_ARGUMENT; BUSY where another thread uses
 * the configuration.
 */
tsw_status tsw_config_set(tsw_config *config, const char *key, const char *value);

/**
 * Copy the value of a key, in its normal form, and return its length.
 *
 * A key that was not set has its default. At most `cap` bytes are written, with the NUL; the
 * length returned is that of the whole value without the NUL, as with snprintf. `buf` may be NULL
 * where `cap` is 0.
 *
 * Returns SIZE_MAX for a key that does not exist, 0 for a NULL argument.
 *
 * Threads: any, concurrently.
 */
size_t tsw_config_get(const tsw_config *config, const char *key, char *buf, size_t cap);

/**
 * Take the values of a JSON text.
 *
 * Either our own flat object, such as `{"queue_depth": 32, "direct_io": "prefer"}`, or a whole
 * DeepSpeed configuration, of which `aio` and `zero_optimization.offload_optimizer` are read; what
 * has no meaning here is accepted and logged. All or nothing.
 *
 * Ownership: the text is copied. It needs no NUL; `len` counts its bytes.
 * Threads: one at a time for each configuration.
 * Errors: CONFIG where the text is no JSON object, a key of our own is not known or a value is not
 * legal, and nothing has changed; NULL_ARGUMENT; BUSY where another thread uses the configuration.
 */
tsw_status tsw_config_load_json(tsw_config *config, const char *json, size_t len);

/**
 * Tell how many keys there are.
 *
 * Threads: any. Errors: none.
 */
size_t tsw_config_keys(void);

/**
 * Tell the name of the key with this index; NULL beyond the last.
 *
 * Ownership: the text is the library's and lives as long as it is loaded.
 * Threads: any. Errors: none.
 */
const char *tsw_config_key_name(size_t index);

/**
 * Tell the default of the key with this index, in its normal form; NULL beyond the last.
 *
 * Ownership: the text is the library's and lives as long as it is loaded.
 * Threads: any. Errors: none.
 */
const char *tsw_config_key_default(size_t index);

/**
 * Tell in one line which object takes the key with this index and what it does; NULL beyond the
 * last.
 *
 * Ownership: the text is the library's and lives as long as it is loaded.
 * Threads: any. Errors: none.
 */
const char *tsw_config_key_help(size_t index);

/**
 * Start an engine.
 *
 * `config_or_null` is copied; NULL takes the defaults. With the key `backend` at auto the engine
 * uses io_uring, or a pool of threads where the kernel or a container forbids it;
 * `tsw_engine_describe` tells which, and why.
 *
 * Ownership: the engine is the caller's, to be freed by `tsw_engine_free`.
 * Threads: any.
 * Errors: CONFIG for options that exclude each other; UNSUPPORTED where the backend asked for
 * cannot be had; NO_MEMORY; NULL_ARGUMENT. `*engine_out` is then NULL.
 */
tsw_status tsw_engine_new(const tsw_config *config_or_null, tsw_engine **engine_out);

/**
 * Take nothing more, and wait until everything under way is over.
 *
 * Completions that were not delivered stay to be waited for or polled. New requests and buffers
 * are refused with SHUT_DOWN from now on; a snapshot that is being made ends with it, and leaves
 * nothing.
 *
 * Threads: any.
 * Errors: TIMED_OUT after `timeout_ns` nanoseconds: nothing more is taken all the same, and the
 * call may be repeated.
 */
tsw_status tsw_engine_shutdown(tsw_engine *engine, uint64_t timeout_ns);

/**
 * Free an engine, after everything under way is over, snapshots too. NULL is fine.
 *
 * Tickets end with it, delivered or not, and its event descriptor is closed. What swappers and
 * buffers of this engine need stays alive until they are freed too; the hooks of registered
 * buffers that were freed before have run when this returns.
 *
 * Threads: any; nobody else may use the engine any more. Not from inside a callback.
 * Errors: none. An error of a request that nobody waited for is lost with its ticket, so wait
 * first. In a forked child nothing happens.
 */
void tsw_engine_free(tsw_engine *engine);

/**
 * Write what is in effect, and why, as one JSON object, and return its length.
 *
 * It tells the backend and the reason for it, the options, and each buffer with its kind of pages.
 * At most `cap` bytes are written, with the NUL; the length returned is that of the whole text
 * without the NUL, as with snprintf. `buf` may be NULL where `cap` is 0. The text may have grown by
 * the next call.
 *
 * Threads: any, concurrently. Returns 0 where the engine is NULL or cannot be used.
 */
size_t tsw_engine_describe(const tsw_engine *engine, char *buf, size_t cap);

/**
 * Write the figures of the engine, its swappers and its optimizers as text for Prometheus, and
 * return its length.
 *
 * The swappers of an engine are told apart by the label `swapper`, its optimizers by the label
 * `optimizer`, each counted from 0.
 *
 * At most `cap` bytes are written, with the NUL; the length returned is that of the whole text
 * without the NUL, as with snprintf. `buf` may be NULL where `cap` is 0. The text may have grown by
 * the next call.
 *
 * Threads: any, concurrently. Returns 0 where the engine is NULL or cannot be used.
 */
size_t tsw_engine_prometheus(const tsw_engine *engine, char *buf, size_t cap);

/**
 * Fill in what the engine has done, and what it is doing.
 *
 * `inout->struct_size` is `sizeof(tsw_engine_stats)`, set by the caller.
 *
 * Threads: any, concurrently.
 * Errors: NULL_ARGUMENT; INVALID_ARGUMENT for a `struct_size` that cannot be.
 */
tsw_status tsw_engine_get_stats(const tsw_engine *engine, tsw_engine_stats *inout);

/**
 * Get the descriptor that is readable while a completion waits to be delivered.
 *
 * For poll, epoll and event loops: when it is readable, call `tsw_ticket_poll`. A ticket on which a
 * thread waits does not make it readable.
 *
 * Ownership: the engine's, valid until its free, non-blocking. Do not read, write or close it.
 * Threads: any.
 * Errors: UNSUPPORTED where the system makes none; NULL_ARGUMENT. `*fd_out` is then -1.
 */
tsw_status tsw_engine_event_fd(const tsw_engine *engine, int32_t *fd_out);

/**
 * Start writing tensors to files.
 *
 * `tensors[i]` goes to `paths[i]`, at its `file_offset`; several may go to one file. A file that
 * does not exist is made, a directory is not. The file then ends with the largest end of this list
 * where the list has a tensor at offset 0 without `TSW_TENSOR_KEEP_LENGTH`, shorter or longer than
 * before; else it only grows. It is never padded. Two requests on one file whose ranges overlap
 * take effect in the order submitted. With `count` 0 both lists may be NULL, and the ticket
 * completes at once.
 *
 * Ownership: both lists are copied. The memory the tensors name is the engine's until the ticket
 * is done: do not write or free it. `*ticket_out` is to be ended by `tsw_ticket_wait` or
 * `tsw_ticket_poll`.
 * Threads: any, concurrently. Never blocks.
 * Errors: INVALID_ARGUMENT for a tensor that cannot be, or ranges of one path that overlap;
 * NULL_ARGUMENT; BUSY with `tickets_max` tickets alive; NO_MEMORY; SHUT_DOWN. `*ticket_out` is
 * then 0, and nothing was started. What files have to say comes with the ticket.
 */
tsw_status tsw_engine_swap_out(tsw_engine *engine,
                               const tsw_tensor *tensors,
                               const char *const *paths,
                               size_t count,
                               tsw_ticket *ticket_out);

/**
 * Start reading tensors from files.
 *
 * `tensors[i]` is read from `paths[i]`, at its `file_offset`. The data is there when the ticket is
 * done. With `count` 0 both lists may be NULL, and the ticket completes at once.
 *
 * Ownership: both lists are copied. The memory the tensors name is the engine's until the ticket
 * is done: do not touch or free it. If the request fails its content is undefined.
 * Threads: any, concurrently. Never blocks.
 * Errors: as `tsw_engine_swap_out`. A file that is too short gives SIZE_MISMATCH with the ticket.
 */
tsw_status tsw_engine_swap_in(tsw_engine *engine,
                              const tsw_tensor *tensors,
                              const char *const *paths,
                              size_t count,
                              tsw_ticket *ticket_out);

/**
 * Wait for every request submitted before this call; deliver none.
 *
 * With nothing pending it returns at once.
 *
 * Threads: any, concurrently.
 * Errors: the first error among those requests, which their own completions still tell; TIMED_OUT
 * after `timeout_ns` nanoseconds, with 0 at once.
 */
tsw_status tsw_engine_wait_all(tsw_engine *engine, uint64_t timeout_ns);

/**
 * Allocate a pinned buffer.
 *
 * Zeroed, aligned to its pages, of 2 MiB pages where they are to be had, locked in memory and
 * registered with the ring, as the keys `pin`, `huge_pages` and `register_buffers` say and the
 * system permits; `tsw_engine_describe` tells what was had.
 *
 * Ownership: the buffer is the caller's, to be freed by `tsw_buffer_free`.
 * Threads: any, concurrently.
 * Errors: INVALID_ARGUMENT for 0 bytes; NO_MEMORY; MEMLOCK or UNSUPPORTED where a key says
 * require; SHUT_DOWN; NULL_ARGUMENT. `*buffer_out` is then NULL.
 */
tsw_status tsw_buffer_new(tsw_engine *engine,
                          uint64_t len_bytes,
                          tsw_buffer **buffer_out);

/**
 * Lend the caller's own memory to the engine as a pinned buffer.
 *
 * For memory that came from somewhere else, such as cudaHostAlloc: any address, any length. It is
 * registered with the ring, and never locked, unmapped or freed by the library.
 *
 * Ownership: the memory stays the caller's and must stay valid until it comes back: when
 * `on_release_or_null` runs, or, without one, when `tsw_buffer_free` returns. The buffer is to be
 * freed by `tsw_buffer_free`. `user_data` is only handed on. Where this function fails the hook
 * never runs.
 * Threads: any, concurrently.
 * Errors: NULL_ARGUMENT; INVALID_ARGUMENT for 0 bytes or a range that cannot be; NO_MEMORY;
 * SHUT_DOWN. `*buffer_out` is then NULL.
 */
tsw_status tsw_buffer_register(tsw_engine *engine,
                               void *data,
                               uint64_t len_bytes,
                               tsw_release_fn on_release_or_null,
                               void *user_data,
                               tsw_buffer **buffer_out);

/**
 * Tell the address of a buffer's memory; NULL for NULL.
 *
 * Ownership: the memory is as the buffer: valid until `tsw_buffer_free`.
 * Threads: any, concurrently. Errors: none.
 */
void *tsw_buffer_data(const tsw_buffer *buffer);

/**
 * Tell the length of a buffer in bytes, as it was asked for; 0 for NULL.
 *
 * Threads: any, concurrently. Errors: none.
 */
uint64_t tsw_buffer_len(const tsw_buffer *buffer);

/**
 * Free a buffer, before or after its engine, with requests on it in flight or not. NULL is fine.
 *
 * Waits until the kernel has let go of the memory, except where a hook tells of that. A buffer that
 * a swapper holds is freed when the swapper lets go of it, in `tsw_swapper_release_buffers` or
 * `tsw_swapper_free`; it is then not handed back.
 *
 * Threads: any; nobody else may use the buffer any more. Errors: none. In a forked child nothing
 * happens.
 */
void tsw_buffer_free(tsw_buffer *buffer);

/**
 * Tell the size of one element in bytes; 0 for a number that is no element type.
 *
 * Threads: any. Errors: none.
 */
uint64_t tsw_dtype_size(uint32_t dtype);

/**
 * Tell the name of an element type, such as "bf16"; NULL for a number that is none.
 *
 * Ownership: the text is the library's and lives as long as it is loaded.
 * Threads: any. Errors: none.
 */
const char *tsw_dtype_name(uint32_t dtype);

/**
 * Describe a tensor of another framework.
 *
 * `dl_tensor` is a `const DLTensor *` of DLPack, such as `&managed->dl_tensor`. Its memory must be
 * the host's (kDLCPU, kDLCUDAHost or kDLROCMHost), its strides NULL or compact with the last
 * dimension fastest, its lanes 1; `byte_offset` is honoured. `file_offset`, `flags` and `user_tag`
 * of the result are 0 and may be set afterwards.
 *
 * Ownership: nothing is copied and nothing kept. The framework's object must outlive every request
 * with the result.
 * Threads: any.
 * Errors: UNSUPPORTED for other devices, strides, lanes or element types; INVALID_ARGUMENT for a
 * shape that cannot be; NULL_ARGUMENT. The result is then all zero.
 */
tsw_status tsw_tensor_from_dlpack(const void *dl_tensor, tsw_tensor *tensor_out);

/**
 * Wait until a request is over, and end its ticket.
 *
 * Returns the request's own status, with the whole message as the last error. `timeout_ns` 0 asks
 * without waiting, `TSW_WAIT_FOREVER` waits as long as it takes. `inout_or_null` receives the
 * completion; with NULL the status is all there is. In one that was not delivered `ticket` is 0.
 *
 * Threads: any; one thread for each ticket.
 * Errors: TIMED_OUT: the ticket stays valid; BAD_TICKET where it has ended or never was; BUSY where
 * another thread waits for it; INVALID_ARGUMENT for a `struct_size` that cannot be, and the ticket
 * stays valid; and whatever the request says.
 */
tsw_status tsw_ticket_wait(tsw_engine *engine,
                           tsw_ticket ticket,
                           uint64_t timeout_ns,
                           tsw_completion *inout_or_null);

/**
 * Deliver the requests that are over, oldest first, and end their tickets.
 *
 * Fills in at most `cap` elements of `array` and tells in `*len_out` how many; 0 where nothing is
 * over. Never waits. `array[0].struct_size` is `sizeof(tsw_completion)`, set by the caller before
 * every call; with `cap` 0 `array` may be NULL. A ticket on which a thread waits is left to it.
 *
 * Each completion has its own status: this function succeeds where the requests failed.
 *
 * Threads: any, concurrently; each completion is delivered once.
 * Errors: NULL_ARGUMENT; INVALID_ARGUMENT for a `struct_size` that cannot be.
 */
tsw_status tsw_ticket_poll(tsw_engine *engine,
                           tsw_completion *array,
                           size_t cap,
                           size_t *len_out);

/**
 * Ask for a request to stop.
 *
 * Only asks: the ticket still completes, with CANCELLED or, where it was too late, as if nothing
 * had been asked, and is to be waited for or polled. What a swap-out that is CANCELLED, or fails, had
 * begun to write cannot be read through this engine until it is written again; what it had not begun
 * to write is as before. A file that it made stays, and may be empty.
 *
 * Threads: any. Errors: BAD_TICKET.
 */
tsw_status tsw_ticket_cancel(tsw_engine *engine,
                             tsw_ticket ticket);

/**
 * Tell how far a request is: bytes moved, and bytes in all, which may be 0.
 *
 * Threads: any. Errors: BAD_TICKET; NULL_ARGUMENT. Both numbers are then 0.
 */
tsw_status tsw_ticket_progress(tsw_engine *engine,
                               tsw_ticket ticket,
                               uint64_t *done_bytes_out,
                               uint64_t *total_bytes_out);

/**
 * Make a swapper on an engine.
 *
 * It has no buffers yet: give it some with `tsw_swapper_add_buffers`. `config_or_null` is copied;
 * NULL takes the engine's.
 *
 * Ownership: the swapper is the caller's, to be freed by `tsw_swapper_free`; it keeps what it needs
 * of the engine alive.
 * Threads: any.
 * Errors: NULL_ARGUMENT; POISONED. `*swapper_out` is then NULL.
 */
tsw_status tsw_swapper_new(tsw_engine *engine,
                           const tsw_config *config_or_null,
                           tsw_swapper **swapper_out);

/**
 * Free a swapper, after all that was staged is written. NULL is fine.
 *
 * An error found while doing so is logged, and stays with its path; call `tsw_swapper_flush` first
 * to hear of it. Buffers it held are the caller's alone again; those freed meanwhile are freed now.
 *
 * Threads: any; nobody else may use the swapper any more. Errors: none. In a forked child nothing
 * happens.
 */
void tsw_swapper_free(tsw_swapper *swapper);

/**
 * Give a swapper the buffers it stages tensors in.
 *
 * All tensors must then have this `dtype`; with `TSW_BYTES` any will do. Two buffers or more let
 * one be filled while another is written.
 *
 * Ownership: the swapper holds the buffers until it releases them or is freed; leave their memory
 * alone meanwhile. `tsw_buffer_free` of one of them takes effect at the release.
 * Threads: one at a time for each swapper.
 * Errors: BUSY where the swapper has buffers already, or another swapper holds one of them;
 * INVALID_ARGUMENT for none, a buffer given twice or of another engine, or an unknown `dtype`;
 * NULL_ARGUMENT. Nothing has changed then.
 */
tsw_status tsw_swapper_add_buffers(tsw_swapper *swapper,
                                   tsw_buffer *const *buffers,
                                   size_t count,
                                   uint32_t dtype);

/**
 * Tell whether a swapper has buffers: 1 or 0; 0 for NULL.
 *
 * Threads: any, concurrently. Errors: none.
 */
uint32_t tsw_swapper_has_buffers(const tsw_swapper *swapper);

/**
 * Stage tensors for writing.
 *
 * When this returns the tensors are copied and their memory is the caller's again; the writes go on
 * in the background. A tensor larger than a buffer goes through several, small ones share one. It
 * waits only for a free buffer. `tsw_swapper_flush` tells whether the writes went well; paths,
 * offsets and file lengths are as with `tsw_engine_swap_out`. With `count` 0 nothing happens.
 *
 * Ownership: both lists are copied; the memory is the caller's again.
 * Threads: one at a time for each swapper.
 * Errors: NO_BUFFERS; DTYPE_MISMATCH; INVALID_ARGUMENT and NULL_ARGUMENT as with
 * `tsw_engine_swap_out`, all before anything is staged; BUSY; SHUT_DOWN. What an
 * earlier write to one of the paths said does not stop a new one, which mends it.
 */
tsw_status tsw_swapper_swap_out(tsw_swapper *swapper,
                                const tsw_tensor *tensors,
                                const char *const *paths,
                                size_t count);

/**
 * Read tensors; the data is there when this returns.
 *
 * What is still being written comes from the staged copy, or after just that write. A tensor in
 * pinned memory is read without a copy. With `count` 0 nothing happens.
 *
 * Ownership: both lists are copied; the memory is the caller's again. Where this fails its content
 * is undefined.
 * Threads: one at a time for each swapper.
 * Errors: as `tsw_swapper_swap_out`; NOT_FOUND, SIZE_MISMATCH and what else files have to say.
 */
tsw_status tsw_swapper_swap_in(tsw_swapper *swapper,
                               const tsw_tensor *tensors,
                               const char *const *paths,
                               size_t count);

/**
 * Start writing what is staged, without waiting for it.
 *
 * Full buffers are written by themselves; this sends off the one being filled. A direct request
 * made afterwards on the same path (`tsw_engine_swap_in`, say, of a record that is needed again)
 * then takes effect after the write, in the order submitted, and no flush is needed between.
 *
 * Threads: one at a time for each swapper.
 * Errors: BUSY; SHUT_DOWN. What the writes say comes with the flush.
 */
tsw_status tsw_swapper_submit(tsw_swapper *swapper);

/**
 * Wait until everything staged is written.
 *
 * Threads: one at a time for each swapper.
 * Errors: the first error of the writes since the last flush, with its path: what was staged is
 * then not all in its files; TIMED_OUT after `timeout_ns` nanoseconds: the writes go on; BUSY.
 */
tsw_status tsw_swapper_flush(tsw_swapper *swapper, uint64_t timeout_ns);

/**
 * Flush, and give the buffers back.
 *
 * `buffers_out` receives the handles that were added, in that order, without those freed meanwhile;
 * `*count_out` tells how many. The swapper can then be given buffers again.
 *
 * Ownership: the buffers are the caller's alone again, also where the flush failed.
 * Threads: one at a time for each swapper.
 * Errors: as `tsw_swapper_flush`, with the buffers given back all the same; INVALID_ARGUMENT where
 * `cap` is too small: nothing has happened then, and `*count_out` tells what is needed; BUSY;
 * NULL_ARGUMENT.
 */
tsw_status tsw_swapper_release_buffers(tsw_swapper *swapper,
                                       tsw_buffer **buffers_out,
                                       size_t cap,
                                       size_t *count_out);

/**
 * Fill in what a swapper has done, and what it is doing.
 *
 * `inout->struct_size` is `sizeof(tsw_swapper_stats)`, set by the caller.
 *
 * Threads: any, concurrently.
 * Errors: NULL_ARGUMENT; INVALID_ARGUMENT for a `struct_size` that cannot be.
 */
tsw_status tsw_swapper_get_stats(const tsw_swapper *swapper,
                                 tsw_swapper_stats *inout);

/**
 * List the timers of a swapper that have run, and return how many there are.
 *
 * Writes at most `cap` names to `names_out`, which may be NULL where `cap` is 0. There are
 * "swap_out", "swap_in", "flush" and "async_swap_gradient_wait".
 *
 * Ownership: the names are the library's and live as long as it is loaded.
 * Threads: any, concurrently. Returns 0 for NULL.
 */
size_t tsw_swapper_timer_names(const tsw_swapper *swapper,
                               const char **names_out,
                               size_t cap);

/**
 * Fill in a timer of a swapper, by its name.
 *
 * `inout->struct_size` is `sizeof(tsw_timer)`, set by the caller. A timer that has not run is all 0.
 *
 * Threads: any, concurrently.
 * Errors: INVALID_ARGUMENT for a name that no timer has, or a `struct_size` that cannot be;
 * NULL_ARGUMENT.
 */
tsw_status tsw_swapper_get_timer(const tsw_swapper *swapper,
                                 const char *name,
                                 tsw_timer *inout);

/**
 * Open the store that the configuration names, or make one.
 *
 * The store is the directory `rank<N>` under the key `path`, N being the key `rank`. `path` names
 * one directory or several, `/a,/b=2`: the same ones in the same order every time. A weight is 1
 * where only others are given, and measured where none is. Key `store` tells whether a store may be
 * made (new, which removes the store that was there), must be there (existing), or either (auto). To
 * make one, directories that are missing are made, with those above them: a run that must go on is
 * safer with existing, or a drive that is not mounted is a new store. The log says at level INFO which
 * it was.
 *
 * Next call `tsw_optimizer_add_state` for each state and `tsw_optimizer_add_parameter` for each
 * parameter: in a store that was there they attach to what is recorded. It opens at the last step
 * that is durable; `tsw_optimizer_step_number` tells which. A relative path, as those of snapshots
 * and exports, is that of the directory the process works in now; it may work in another one later.
 * With `backend` at memory nothing outlives the engine. NULL takes the engine's configuration.
 *
 * Ownership: the optimizer is the caller's, to be freed by `tsw_optimizer_free`; it keeps what it
 * needs of the engine alive. The configuration is copied.
 * Threads: any.
 * Errors: CONFIG without a `path`; LOCKED where another optimizer, of this process or another one,
 * has the store open; NOT_FOUND where there is none and `store` is existing; CORRUPT where the
 * store is damaged, or its directories are not all of its own in their order; UNSUPPORTED for a later
 * version of the format; NO_SPACE, PERMISSION, IO; NO_MEMORY; NULL_ARGUMENT. `*optimizer_out` is then
 * NULL.
 */
tsw_status tsw_optimizer_new(tsw_engine *engine,
                             const tsw_config *config_or_null,
                             tsw_optimizer **optimizer_out);

/**
 * Free an optimizer. NULL is fine.
 *
 * What was not committed is dropped: the store stays at its last durable step. A commit that is
 * under way in the background is waited for; call `tsw_optimizer_commit` first to be sure of the
 * last step and to hear of its errors. Views that are still out must not be touched any more.
 *
 * Threads: any; nobody else may use the optimizer any more. Errors: none. In a forked child nothing
 * happens.
 */
void tsw_optimizer_free(tsw_optimizer *optimizer);

/**
 * Add a state that every parameter has.
 *
 * Call it before any parameter is added, at most `TSW_STATES_MAX` times, in the same order in every
 * run. State 0 is the master parameter. `dtype` is the type in memory, which views show;
 * `disk_dtype` the one on storage. Where they differ, both are of f32, f16 and bf16: values are
 * rounded (key `rounding`) when a record is given back and widened when it is brought in, so that
 * what is computed does not depend on what happens to be cached.
 *
 * Ownership: the name is copied. It is UTF-8 text of at most 4096 bytes.
 * Threads: one at a time for each optimizer.
 * Errors: SIZE_MISMATCH where the store has another state at this place, with both in the message;
 * UNSUPPORTED where there is no conversion between the types, or for a state 0 that is not f32, f16
 * or bf16; INVALID_ARGUMENT for a name used twice or unfit, too many states, an unknown type, or a
 * state after the first parameter; NULL_ARGUMENT; BUSY. Nothing has changed then.
 */
tsw_status tsw_optimizer_add_state(tsw_optimizer *optimizer,
                                   const char *name,
                                   uint32_t dtype,
                                   uint32_t disk_dtype);

/**
 * Register a parameter of `numel` elements under an id of the caller's.
 *
 * Ids are stable names: use the same ones in every run. In a store that was there this attaches to
 * what is recorded; else it reserves the space of two versions of the record. A parameter that is
 * never initialized is zero in all of its states.
 *
 * Ownership: the name is copied; it is UTF-8 text of at most 4096 bytes, for messages and exports.
 * Threads: one at a time for each optimizer.
 * Errors: SIZE_MISMATCH where the store has this id with another `numel` or another name, or with
 * more states than were added, with both in the message; INVALID_ARGUMENT for `TSW_NO_PARAMETER`, an
 * id given twice, no elements, or no state yet; NO_SPACE where the disk cannot hold it;
 * NULL_ARGUMENT; BUSY. Nothing has changed then.
 */
tsw_status tsw_optimizer_add_parameter(tsw_optimizer *optimizer,
                                       uint64_t id,
                                       const char *name_or_null,
                                       uint64_t numel);

/**
 * Give parameters the values of their master, and zero to their other states.
 *
 * `sources[i]` holds all elements of `ids[i]`, in f32, f16 or bf16, in any memory; its
 * `file_offset` has no meaning. Pending until the next commit: call `tsw_optimizer_commit`, which
 * makes it durable as step 0. With `count` 0 nothing happens.
 *
 * Ownership: both lists are copied; the memory is the caller's again when this returns.
 * Threads: one at a time for each optimizer.
 * Errors: UNKNOWN_PARAMETER; INVALID_ARGUMENT for a source with another number of elements;
 * DTYPE_MISMATCH for a source that is not f32, f16 or bf16; BUSY while a step is open or one of them
 * is in use; NO_BUFFERS with `views_max` parameters in; NULL_ARGUMENT; what storage has to say.
 */
tsw_status tsw_optimizer_initialize_parameters(tsw_optimizer *optimizer,
                                               const uint64_t *ids,
                                               const tsw_tensor *sources,
                                               size_t count);

/**
 * Give parameters the values of their master from pieces, in memory or in raw files.
 *
 * For weights that were swapped out before, in f16 or bf16 say. The pieces of one parameter may
 * come in any order and must cover it exactly; other states become zero. Pending until the next
 * commit, as with `tsw_optimizer_initialize_parameters`. With `count` 0 nothing happens.
 *
 * Ownership: the list and its paths are copied; the memory is the caller's again when this returns.
 * Threads: one at a time for each optimizer.
 * Errors: INVALID_ARGUMENT where pieces overlap, leave a hole or exceed the parameter, naming it;
 * UNKNOWN_PARAMETER; DTYPE_MISMATCH for a piece that is not f32, f16 or bf16; NOT_FOUND and SIZE_MISMATCH
 * for a file that is missing or too short; BUSY; NO_BUFFERS; NULL_ARGUMENT; what storage has to say.
 */
tsw_status tsw_optimizer_initialize_from_swapped(tsw_optimizer *optimizer,
                                                 const tsw_partition *partitions,
                                                 size_t count);

/**
 * Set the moments of all parameters that this run added back to zero; the masters stay.
 *
 * Pending until the next commit.
 *
 * Threads: one at a time for each optimizer.
 * Errors: BUSY while a step is open or a parameter is in use.
 */
tsw_status tsw_optimizer_purge_state(tsw_optimizer *optimizer);

/**
 * Copy one state of a parameter into memory.
 *
 * What was given back last is what is read, committed or not. `destination` has as many elements as
 * the parameter, and the state's type in memory; its `file_offset` has no meaning.
 *
 * Ownership: the memory is the caller's again when this returns; where it fails its content is
 * undefined.
 * Threads: one at a time for each optimizer.
 * Errors: UNKNOWN_PARAMETER; INVALID_ARGUMENT for a name that no state has, or another number of
 * elements; DTYPE_MISMATCH; BUSY while the parameter is out; CHECKSUM naming the parameter where
 * storage does not hold what was written; NULL_ARGUMENT; what storage has to say.
 */
tsw_status tsw_optimizer_read_state(tsw_optimizer *optimizer,
                                    uint64_t id,
                                    const char *state,
                                    const tsw_tensor *destination);

/**
 * Replace one state of a parameter by values in memory.
 *
 * `source` is as `destination` of `tsw_optimizer_read_state`. Pending until the next commit.
 *
 * Ownership: the memory is the caller's again when this returns.
 * Threads: one at a time for each optimizer.
 * Errors: as `tsw_optimizer_read_state`; BUSY also while a step is open. The state is then as it
 * was.
 */
tsw_status tsw_optimizer_write_state(tsw_optimizer *optimizer,
                                     uint64_t id,
                                     const char *state,
                                     const tsw_tensor *source);

/**
 * Say that a backward pass begins. Optional.
 *
 * It clears nothing: with micro-batches several backward passes add up before a step.
 *
 * Threads: one at a time for each optimizer.
 * Errors: BUSY.
 */
tsw_status tsw_optimizer_pre_backward(tsw_optimizer *optimizer);

/**
 * Hand over regions of a parameter's gradient.
 *
 * `gradients[i]` is the region that begins `offsets[i]` elements into the parameter, any length at
 * any offset, f32, f16 or bf16, in any memory; its `file_offset` has no meaning. A region replaces
 * what was there, or with `TSW_TENSOR_ACCUMULATE` is added to it. They wait for the update in
 * memory, or where the key `gradients` says so on storage, and end at `tsw_optimizer_step_end`,
 * `tsw_optimizer_step_abort`, `tsw_optimizer_swap_out_state` of the parameter, or
 * `tsw_optimizer_discard_gradients`. With `count` 0 nothing happens.
 *
 * Ownership: both lists are copied; the memory is the caller's again when this returns.
 * Threads: one at a time for each optimizer.
 * Errors: UNKNOWN_PARAMETER; INVALID_ARGUMENT for a region beyond the parameter's end;
 * DTYPE_MISMATCH for one that is not f32, f16 or bf16; BUSY while the parameter is out or a step is
 * open; NULL_ARGUMENT; NO_MEMORY; what storage has to say. A list is validated whole before anything
 * is taken.
 */
tsw_status tsw_optimizer_swap_out_gradients(tsw_optimizer *optimizer,
                                            uint64_t id,
                                            const uint64_t *offsets,
                                            const tsw_tensor *gradients,
                                            size_t count);

/**
 * Wait until the gradients that go to storage are there, and hear of their errors.
 *
 * Views show a gradient that is still on its way all the same; this is for those who want the
 * error, or the time, at a place of their choice.
 *
 * Threads: one at a time for each optimizer.
 * Errors: what storage has to say; BUSY.
 */
tsw_status tsw_optimizer_flush_gradients(tsw_optimizer *optimizer);

/**
 * Say that a backward pass is over.
 *
 * Threads: one at a time for each optimizer.
 * Errors: BUSY.
 */
tsw_status tsw_optimizer_post_backward(tsw_optimizer *optimizer);

/**
 * Compute the sum of squares of a parameter's gradient, and count what is not finite.
 *
 * The sum is over finite elements, in f64 and in a fixed order; 0 where no region was swapped out.
 * It answers before the step begins whether to clip, or whether a loss scale overflowed and the
 * step is better not begun.
 *
 * Threads: one at a time for each optimizer.
 * Errors: UNKNOWN_PARAMETER; BUSY; NULL_ARGUMENT; what storage has to say of gradients there. Both
 * results are then 0.
 */
tsw_status tsw_optimizer_gradient_norm(tsw_optimizer *optimizer,
                                       uint64_t id,
                                       double *sum_of_squares_out,
                                       uint64_t *nonfinite_count_out);

/**
 * Forget all gradients.
 *
 * Threads: one at a time for each optimizer.
 * Errors: BUSY while a step is open or a parameter is out.
 */
tsw_status tsw_optimizer_discard_gradients(tsw_optimizer *optimizer);

/**
 * Bring a parameter into memory, and begin to bring in the next.
 *
 * `next_id` is the parameter that will be asked for next, or `TSW_NO_PARAMETER`: it is read in the
 * background (key `pipeline_read`) and must then be the next one swapped in, or be released.
 * The parameter is the caller's until `tsw_optimizer_swap_out_state` or
 * `tsw_optimizer_release_state`. `inout->struct_size` is `sizeof(tsw_parameter_view)`.
 *
 * Ownership: the memory that the view shows is the optimizer's, lent.
 * Threads: one at a time for each optimizer.
 * Errors: BUSY naming the parameter where it is in already, another one was announced, or a step is
 * open; INVALID_ARGUMENT for a `next_id` that is `id`; NO_BUFFERS with `views_max` parameters in;
 * BUDGET with the bytes needed where `pinned_bytes` is too small; UNKNOWN_PARAMETER; CHECKSUM where
 * storage does not hold what was written; what an earlier write-back of the parameter, or storage,
 * has to say; NULL_ARGUMENT. `inout->id` is then `TSW_NO_PARAMETER` and the parameter is not in.
 */
tsw_status tsw_optimizer_swap_in_state(tsw_optimizer *optimizer,
                                       uint64_t id,
                                       uint64_t next_id,
                                       tsw_parameter_view *inout);

/**
 * Write a parameter that was brought in back, and give its memory up.
 *
 * With `async` 1 it returns at once and the write goes on in the background (key
 * `pipeline_write`); with 0 it returns when the write is done. Durable with the next
 * `tsw_optimizer_commit`, which then counts a step. The parameter's gradient ends here.
 *
 * Ownership: the memory of the view is the optimizer's again.
 * Threads: one at a time for each optimizer.
 * Errors: BUSY where the parameter is not in; INVALID_ARGUMENT for another `async`;
 * UNKNOWN_PARAMETER; with `async` 0 what storage has to say. An error of a write in the background
 * comes with the next call on the parameter, and with the commit; the version before stays
 * readable.
 */
tsw_status tsw_optimizer_swap_out_state(tsw_optimizer *optimizer,
                                        uint64_t id,
                                        uint32_t async);

/**
 * Give a parameter's memory up without writing it.
 *
 * For one that was announced as the next and is not wanted after all, or one that was only looked
 * at: the caller vouches that nothing in the view was changed. Its gradient stays.
 *
 * Ownership: the memory of the view is the optimizer's again.
 * Threads: one at a time for each optimizer.
 * Errors: BUSY where the parameter is not in; UNKNOWN_PARAMETER.
 */
tsw_status tsw_optimizer_release_state(tsw_optimizer *optimizer, uint64_t id);

/**
 * Begin a step over some parameters, or over all that were added.
 *
 * `ids_or_null` NULL with `count` 0 means all; a list that is not NULL with `count` 0 is a step over
 * none of them. Reading begins at once, in an order that the optimizer chooses. Then call
 * `tsw_optimizer_step_next` and `tsw_optimizer_step_done` until there are no more, and
 * `tsw_optimizer_step_end`. With `sync` at commit it first commits, as `tsw_optimizer_commit` does,
 * what was changed between steps and could not be taken back otherwise.
 *
 * Ownership: the list is copied.
 * Threads: one at a time for each optimizer.
 * Errors: BUSY where a step is open or a parameter is in; UNKNOWN_PARAMETER; INVALID_ARGUMENT for
 * an id given twice; BUDGET with the bytes needed where `pinned_bytes` is too small; NULL_ARGUMENT
 * for NULL with a `count`; what the background commit of an earlier step has to say (see
 * `tsw_optimizer_step_end`). No step is open then.
 */
tsw_status tsw_optimizer_step_begin(tsw_optimizer *optimizer,
                                    const uint64_t *ids_or_null,
                                    size_t count);

/**
 * Get the next parameter to update; `TSW_END` when all were given out.
 *
 * It waits until the parameter is in memory. Update the states in the view in place, then call
 * `tsw_optimizer_step_done`. `inout->struct_size` is `sizeof(tsw_parameter_view)`; where no
 * parameter is given out, `inout->id` is `TSW_NO_PARAMETER`.
 *
 * Ownership: the memory that the view shows is the optimizer's, lent until `tsw_optimizer_step_done`.
 * Threads: any, concurrently: several threads may each loop over it.
 * Errors: NO_BUFFERS at once with `views_max` views out: set the key to the number of threads.
 * Where a record cannot be read, what storage had to say, CHECKSUM among it, with `inout->id` set:
 * that parameter counts as given back, go on with the others; `tsw_optimizer_step_end` returns the
 * error once more and commits nothing. CANCELLED after `tsw_optimizer_step_abort` was called; BUSY
 * without a step; NULL_ARGUMENT.
 */
tsw_status tsw_optimizer_step_next(tsw_optimizer *optimizer,
                                   tsw_parameter_view *inout);

/**
 * Give a parameter back.
 *
 * With `changed` 1 it is written back in the background; with 0 the caller vouches that nothing in
 * the view was changed, and nothing is written.
 *
 * Ownership: the memory of the view is the optimizer's again.
 * Threads: any, concurrently; it need not be the thread that got the view.
 * Errors: BUSY where the parameter is not out; INVALID_ARGUMENT for another `changed`;
 * UNKNOWN_PARAMETER. What the write has to say comes with `tsw_optimizer_step_end`.
 */
tsw_status tsw_optimizer_step_done(tsw_optimizer *optimizer, uint64_t id, uint32_t changed);

/**
 * End a step: count it, with the user data, and forget its gradients.
 *
 * With `sync` at commit the step becomes durable in the background: the next one may begin
 * meanwhile. Where that fails, the next call on records returns the error, once, and everything is
 * back at the last durable step, which `tsw_optimizer_step_number` then tells; a step that was begun
 * meanwhile is to be aborted. With `sync` at none nothing becomes durable before
 * `tsw_optimizer_commit`. After a crash the store opens at the last durable step, never at a mix.
 *
 * Threads: one at a time for each optimizer.
 * Errors: BUSY before `tsw_optimizer_step_next` returned `TSW_END`, or with views out: the step
 * stays open; the first error of a read or write-back of this step: nothing is committed and the
 * step stays open, so call `tsw_optimizer_step_abort`.
 */
tsw_status tsw_optimizer_step_end(tsw_optimizer *optimizer);

/**
 * Undo a step: all is as if it had not been begun, but this step's gradients are gone.
 *
 * With views out it returns BUSY and takes effect all the same: `tsw_optimizer_step_next` returns
 * CANCELLED from then on, `tsw_optimizer_step_done` drops what was changed, and this is called again
 * when all are back.
 *
 * Threads: one at a time for each optimizer.
 * Errors: BUSY with views out, or without a step; UNSUPPORTED with `sync` at none once a write-back
 * has begun, or a parameter was given out whose newest version only memory had: look at
 * `tsw_optimizer_gradient_norm` before the step instead. A step that failed can be aborted even then:
 * everything is back at the last commit, which `tsw_optimizer_step_number` tells. What made the commit
 * of the step before fail, if no call has said so yet.
 */
tsw_status tsw_optimizer_step_abort(tsw_optimizer *optimizer);

/**
 * Make all that is done durable, and wait for it.
 *
 * Takes in what is pending: initialization, `tsw_optimizer_write_state`,
 * `tsw_optimizer_purge_state`, user data, records swapped out. It counts a step only where
 * `tsw_optimizer_swap_out_state` was called since the last commit.
 *
 * Threads: one at a time for each optimizer.
 * Errors: BUSY while a step is open or a parameter is in; the first error of a write-back, a sync or
 * the log: the store is then at the step that was durable before. A failed sync is never tried
 * again: every later commit of this optimizer fails with it. Where space ran out, a later commit may
 * succeed.
 */
tsw_status tsw_optimizer_commit(tsw_optimizer *optimizer);

/**
 * Tell how many parameters the store records; 0 for NULL and in a forked child.
 *
 * Those of earlier runs count, whether or not they were added in this one: before the first
 * `tsw_optimizer_add_parameter` it is 0 in a store where nothing was ever committed.
 *
 * Threads: any, concurrently. Errors: none.
 */
size_t tsw_optimizer_parameters_len(const tsw_optimizer *optimizer);

/**
 * Tell id and size of a parameter by its index, in the order of first registration.
 *
 * Threads: any, concurrently.
 * Errors: INVALID_ARGUMENT beyond the last; NULL_ARGUMENT. `*id_out` is then `TSW_NO_PARAMETER`.
 */
tsw_status tsw_optimizer_parameter_at(const tsw_optimizer *optimizer,
                                      size_t index,
                                      uint64_t *id_out,
                                      uint64_t *numel_out);

/**
 * Set the bytes that are committed with the next step.
 *
 * For what a run needs to go on besides the state: learning rate, random numbers, a place in the
 * data. At most `TSW_USER_DATA_BYTES_MAX`. With `len_bytes` 0 there are none, and `data` may be
 * NULL.
 *
 * Ownership: the bytes are copied.
 * Threads: one at a time for each optimizer.
 * Errors: INVALID_ARGUMENT for more bytes; NO_MEMORY; NULL_ARGUMENT; BUSY.
 */
tsw_status tsw_optimizer_set_user_data(tsw_optimizer *optimizer,
                                       const void *data,
                                       size_t len_bytes);

/**
 * Copy the user data that was set last, or that the store was opened with, and return its length.
 *
 * At most `cap` bytes are written; the length returned is that of all. `buf` may be NULL where
 * `cap` is 0.
 *
 * Threads: any, concurrently. Returns 0 for NULL.
 */
size_t tsw_optimizer_get_user_data(const tsw_optimizer *optimizer, void *buf, size_t cap);

/**
 * Tell how many steps were done, counting from the store's beginning; 0 for NULL and in a forked child.
 *
 * After opening it is the step the store was at; after `tsw_optimizer_step_end` the step just ended,
 * which may not be durable yet.
 *
 * Threads: any, concurrently. Errors: none.
 */
uint64_t tsw_optimizer_step_number(const tsw_optimizer *optimizer);

/**
 * Start a snapshot: a copy of the step that was committed last, in a directory of its own.
 *
 * It holds all states of all parameters, the step's number and the user data, independent of rank
 * and directories, and verifiable by itself. `directory` must not exist, or be empty; those above it
 * are made. It appears there whole, by one rename, or not at all. This waits for a commit that is
 * under way, and returns then; the ticket is one of the engine's: wait for it, ask for its progress,
 * cancel it. The progress counts bytes copied; only the ticket's end says that it is there. Training
 * goes on meanwhile: the copy has low priority, and what is written goes elsewhere (the store's
 * files grow by up to half while it lasts; without that space, steps wait for the copy of what they
 * are about to write over). Where the file system shares blocks between files (btrfs, xfs) it takes
 * moments and no space. With several ranks give each its own directory: `snap/rank0`, `snap/rank1`,
 * … as `tensorswap reshard` expects.
 *
 * Ownership: the path is copied. `tsw_optimizer_free` cancels a snapshot; its ticket ends all the
 * same.
 * Threads: one at a time for each optimizer.
 * Errors: INVALID_ARGUMENT where nothing was committed yet, or for a path that does not end in a
 * name; IO with EEXIST where there is something else of that name; NO_SPACE naming the bytes needed;
 * LOCKED where somebody else is making the same one; BUSY while another one is being made, and with
 * `tickets_max` tickets alive; UNSUPPORTED with the memory backend; NULL_ARGUMENT. `*ticket_out` is
 * then 0. The ticket ends with CHECKSUM where a parameter is not what was written, with CANCELLED,
 * or with what storage has to say; then nothing is left of it.
 */
tsw_status tsw_optimizer_snapshot(tsw_optimizer *optimizer,
                                  const char *directory,
                                  tsw_ticket *ticket_out);

/**
 * Bring a snapshot back, into a new store.
 *
 * Call it after `tsw_optimizer_add_state`, with the names of the snapshot's states; it registers the
 * parameters, so that nothing is to be added afterwards, verifies every byte, and commits, so that
 * the store is then at the snapshot's step, with its user data. Directories, pinned memory, rank,
 * and the states' types in memory and on storage may be others than those that it was made with;
 * values that get a narrower type on storage are rounded to the nearest.
 *
 * Threads: one at a time for each optimizer.
 * Errors: NOT_FOUND where there is no snapshot; CORRUPT where its manifest is damaged; CHECKSUM
 * naming the parameter where its data is; UNSUPPORTED for a later version of the format;
 * SIZE_MISMATCH for other states; INVALID_ARGUMENT where the store has parameters already;
 * NO_SPACE naming the bytes needed; NULL_ARGUMENT; what storage has to say. Nothing is
 * committed then; parameters may have been registered, so free the optimizer, and make it again
 * before the next attempt.
 */
tsw_status tsw_optimizer_restore(tsw_optimizer *optimizer,
                                 const char *directory);

/**
 * Write all states of all parameters to a safetensors file.
 *
 * For other programs, such as Python's `safetensors`: the masters and moments of every parameter that
 * this run added, what `tsw_optimizer_read_state` would read, committed or not. `file` is replaced
 * where it exists. State 0 has the name of its parameter, or `parameter.<id>` where that has none; the
 * others `<that name>.<name of the state>`. Each tensor has one dimension, and the type that the state
 * has on storage, so that no value is rounded; TSW_BYTES becomes U8. The metadata holds `format` (pt),
 * `step` and `tensorswap` (the version).
 *
 * With a `shard_bytes_max` other than 0 that the data exceeds, it is cut between tensors, into
 * `name-00001-of-00003.safetensors` and so on for a `file` of `name.safetensors`, and
 * `name.safetensors.index.json` tells which tensor is where, as Hugging Face's libraries have it. A
 * tensor longer than that has a file of its own.
 *
 * The files are written as `<file>.partial`, synced, and renamed when all are whole, the index last, in
 * place of files and links of these names. What an earlier export to `file` that was cut otherwise left
 * stays beside them, an index beside one file or the reverse: remove it, or programs may read the old
 * one. It takes at most 64 MiB of memory besides the optimizer's own.
 *
 * Threads: one at a time for each optimizer; training waits.
 * Errors: BUSY while a step is open or a parameter is in use; INVALID_ARGUMENT where two tensors would
 * have one name, naming both, or none of the store's parameters was added; UNSUPPORTED where a device,
 * pipe or socket has one of the names; LOCKED where another export is writing the same files; NO_SPACE
 * with the bytes needed; NOT_FOUND for a directory that is missing; CHECKSUM naming the parameter where
 * storage does not hold what was written; NULL_ARGUMENT; what storage has to say. No file is left then.
 */
tsw_status tsw_optimizer_export_safetensors(tsw_optimizer *optimizer,
                                            const char *file,
                                            uint64_t shard_bytes_max);

/**
 * Give parameters the values of their master from a safetensors file.
 *
 * `file` is one such file, or the index of several (its name ends in `.index.json`). Parameter
 * `ids[i]` becomes the tensor `names[i]`, which has as many elements, in any shape, in f32, f16 or
 * bf16. Where `names` or one of them is NULL it is the name that `tsw_optimizer_export_safetensors`
 * gives to the parameter. Other states become zero. Pending until the next commit, as with
 * `tsw_optimizer_initialize_parameters`. With `count` 0 nothing happens.
 *
 * The data is read by the engine, past the page cache, and not mapped into memory: a file that is cut
 * meanwhile, or a drive that fails, is an error and not a signal.
 *
 * Ownership: the lists are copied.
 * Threads: one at a time for each optimizer.
 * Errors: CORRUPT for a file that is no safetensors file or whose header is wrong; NOT_FOUND for a file
 * that is missing or a name that no tensor has, naming both; SIZE_MISMATCH for a tensor with another
 * number of elements; DTYPE_MISMATCH for another type; UNKNOWN_PARAMETER; INVALID_ARGUMENT for an id
 * given twice; BUSY while a step is open or one of them is in use; NULL_ARGUMENT. Nothing has changed
 * then. What storage has to say.
 */
tsw_status tsw_optimizer_initialize_from_safetensors(tsw_optimizer *optimizer,
                                                     const char *file,
                                                     const uint64_t *ids,
                                                     const char *const *names,
                                                     size_t count);

/**
 * Fill in what an optimizer has done, and what its last step was like.
 *
 * `inout->struct_size` is `sizeof(tsw_optimizer_stats)`, set by the caller.
 *
 * Threads: any, concurrently.
 * Errors: NULL_ARGUMENT; INVALID_ARGUMENT for a `struct_size` that cannot be.
 */
tsw_status tsw_optimizer_get_stats(const tsw_optimizer *optimizer,
                                   tsw_optimizer_stats *inout);

/**
 * List the timers of an optimizer that have run, and return how many there are.
 *
 * Writes at most `cap` names to `names_out`, which may be NULL where `cap` is 0. The names are
 * DeepSpeed's: "swap_in_state", "swap_out_state", "swap_out_gradient", "async_swap_in_state",
 * "async_swap_out_state", "async_swap_gradient_wait", "swap_init_write" and
 * "unswapped_read_gradients"; and "commit".
 *
 * Ownership: the names are the library's and live as long as it is loaded.
 * Threads: any, concurrently. Returns 0 for NULL.
 */
size_t tsw_optimizer_timer_names(const tsw_optimizer *optimizer,
                                 const char **names_out,
                                 size_t cap);

/**
 * Fill in a timer of an optimizer, by its name.
 *
 * `inout->struct_size` is `sizeof(tsw_timer)`, set by the caller. A timer that has not run is all 0.
 *
 * Threads: any, concurrently.
 * Errors: INVALID_ARGUMENT for a name that no timer has, or a `struct_size` that cannot be;
 * NULL_ARGUMENT.
 */
tsw_status tsw_optimizer_get_timer(const tsw_optimizer *optimizer,
                                   const char *name,
                                   tsw_timer *inout);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* TENSORSWAP_H */
