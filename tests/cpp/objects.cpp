// Every class of tensorswap.hpp but the step: ownership, errors, lists, waiting, figures.
#include "expect.hpp"

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

using namespace std::chrono_literals;
using tensorswap::const_tensor;
using tensorswap::dtype;
using tensorswap::status;
using tensorswap::tensor;

// An owner moves, and nothing else.
template <class Owner>
constexpr bool moves_only = std::is_nothrow_move_constructible_v<Owner>
    && !std::is_copy_constructible_v<Owner> && !std::is_copy_assignable_v<Owner>;
static_assert(moves_only<tensorswap::config> && moves_only<tensorswap::engine>);
static_assert(moves_only<tensorswap::buffer> && moves_only<tensorswap::swapper>);
static_assert(moves_only<tensorswap::optimizer> && moves_only<tensorswap::request>);
static_assert(moves_only<tensorswap::training_step> && moves_only<tensorswap::log>);

// Nothing is read into memory that is const, and a const tensor is not a tensor.
static_assert(std::is_constructible_v<const_tensor, const std::vector<float>&>);
static_assert(!std::is_constructible_v<tensor, const std::vector<float>&>);
static_assert(std::is_convertible_v<tensor, const_tensor>);
static_assert(!std::is_convertible_v<const_tensor, tensor>);
static_assert(!std::is_convertible_v<status, int> && !std::is_convertible_v<int, dtype>);

// A number type of another library.
struct half_of_another_library {
    std::uint16_t bits;
};
template <> inline constexpr dtype tensorswap::dtype_of<half_of_another_library> = dtype::f16;

static void spans()
{
    const std::vector<half_of_another_library> halves(3);
    EXPECT(const_tensor(halves).raw().dtype == TSW_F16 && const_tensor(halves).raw().numel == 3);
    EXPECT(const_tensor(tensorswap::span(halves).first(2)).raw().numel == 2);
    std::vector<float> values = {1, 2, 3, 4};
    tensorswap::span<float> all = values;
    tensorswap::span<const float> constant = all;
    EXPECT(all.size() == 4 && all.size_bytes() == 16 && constant[3] == 4);
    EXPECT(all.subspan(1, 2)[0] == 2 && all.first(0).empty());
    const int array[] = {5, 6};
    EXPECT(tensorswap::span(array).size() == 2);
    static_assert(!std::is_convertible_v<tensorswap::span<const float>, tensorswap::span<float>>);
    float sum = 0;
    for (const float value : all)
        sum += value;
    EXPECT(sum == 10);
#if __cplusplus >= 202002L
    std::span<float> standard = all;
    EXPECT(standard.data() == values.data() && standard.size() == 4);
    EXPECT(tensorswap::span<const float>(standard).data() == values.data());
#endif
}

static void timeouts()
{
    EXPECT(tensorswap::timeout(-1s).count_ns() == 0);
    EXPECT(tensorswap::timeout(0s).count_ns() == 0);
    EXPECT(tensorswap::timeout(3us).count_ns() == 3000);
    EXPECT(tensorswap::timeout(std::chrono::duration<double>(0.5)).count_ns() == 500'000'000);
    EXPECT(tensorswap::timeout(std::chrono::hours::max()).count_ns() == TSW_WAIT_FOREVER);
    EXPECT(tensorswap::timeout(std::chrono::nanoseconds::max()).count_ns() == TSW_WAIT_FOREVER);
}

static void configurations()
{
    tensorswap::config config;
    config.set("queue_depth", 16);
    config.set(std::string("direct_io"), "prefer");
    config.set("sqpoll", true);
    EXPECT(config.get("sqpoll") == "true");
    config.set("sqpoll", false);
    EXPECT(config.get("queue_depth") == "16" && !config.get("no_such_key"));
    const auto error = failure_of([&] { config.set("queue_dept", 16); });
    EXPECT(error.code() == status::config && error.os_error() == 0 && !error.is_retryable());
    EXPECT(std::string(error.what()).find("queue_depth") != std::string::npos);
    config.load_json(R"({"queue_depth": 8})");
    EXPECT(config.get("queue_depth") == "8");
    EXPECT(failure_of([&] { config.load_json("no"); }).code() == status::config);
    const auto keys = tensorswap::config::keys();
    EXPECT(keys.size() == tsw_config_keys() && std::string(keys[0].help) != "");

    tensorswap::config moved = std::move(config);
    EXPECT(moved.get("queue_depth") == "8");
    EXPECT(failure_of([&] { config.set("queue_depth", 1); }).code() == status::null_argument);
    EXPECT(config.get("queue_depth") == "");
    EXPECT(std::string(tensorswap::name(status::no_space)) == "TSW_ERR_NO_SPACE");
    EXPECT(tensorswap::is_retryable(status::no_space));
    EXPECT(tensorswap::size_bytes(dtype::bf16) == 2);
    EXPECT(std::string(tensorswap::name(dtype::bf16)) == "bf16");
    EXPECT(tensorswap::abi() == TSW_ABI && std::string(tensorswap::version()) == TSW_VERSION);
}

static void requests()
{
    tensorswap::engine engine;
    std::vector<float> values(3000, 1.5f);
    std::vector<double> more(100, 2.5);
    {
        // The destructor waits: values may be changed afterwards.
        auto unused = engine.swap_out(const_tensor(values), "one");
    }
    values[7] = 7;
    const std::array<const_tensor, 2> out = {const_tensor(values).tagged(5),
                                             const_tensor(more).at(16384).keeping_length()};
    const std::array<const char*, 2> paths = {"two", "two"};
    auto request = engine.swap_out(out, paths);
    auto end = request.wait();
    EXPECT(end && end.bytes_done() == 12800 && end.user_tag() == 5 && end.elapsed() > 0ns);
    EXPECT(request.ticket() == 0 && !end.failed_index() && end.message().empty());
    EXPECT(failure_of([&] { request.wait(); }).code() == status::bad_ticket);
    EXPECT(std::filesystem::file_size("two") == 17184);

    std::vector<float> read(3000);
    std::vector<double> read_more(100);
    std::vector<tensor> in = {tensor(read), tensor(read_more).at(16384)};
    request = engine.swap_in(in, paths);
    EXPECT(request.wait_for(1h) && read == values && read_more == more);

    // A failure has the path and the errno, and tells which tensor it was.
    const std::array<const char*, 2> absent = {"two", "absent/file"};
    const auto error = failure_of([&] { engine.swap_in(in, absent).wait(); });
    EXPECT(error.code() == status::not_found && error.os_error() == ENOENT);
    EXPECT(std::string(error.what()).find("absent/file") != std::string::npos);
    const auto outcome = engine.swap_in(in, absent).outcome();
    EXPECT(!outcome && outcome.code() == status::not_found && outcome.failed_index() == 1);
    EXPECT(outcome.os_error() == ENOENT && !outcome.message().empty());
    const auto lists = failure_of([&] { engine.swap_in(in, {absent.data(), 1}).wait(); });
    EXPECT(lists.code() == status::invalid_argument);

    // A ticket that was given up comes out of poll.
    const tsw_ticket ticket = engine.swap_out(const_tensor(values), "one").detach();
    EXPECT(engine.event_fd() >= 0 && engine.wait_all_for(1h));
    engine.wait_all();
    std::array<tensorswap::completion, 4> room;
    const auto over = engine.poll(room);
    EXPECT(over.size() == 1 && over[0].ticket() == ticket && over[0]);
    EXPECT(engine.poll(room).empty());

    auto moving = engine.swap_out(const_tensor(values), "one");
    tensorswap::engine moved = std::move(engine);
    const auto progress = moving.progress();
    EXPECT(progress.total == 12000 && progress.done <= progress.total);
    moving.cancel();
    const status ended = moving.outcome().code(); // whichever was first
    EXPECT(ended == status::ok || ended == status::cancelled);
    EXPECT(failure_of([&] { engine.wait_all(); }).code() == status::null_argument);
    EXPECT(moved.stats().requests_count >= 7 && moved.describe().front() == '{');
    EXPECT(moved.prometheus().find("tensorswap_") != std::string::npos);
    moved.shutdown();
    EXPECT(moved.shutdown_for(0s));
    const auto after = failure_of([&] { moved.swap_out(const_tensor(values), "one").wait(); });
    EXPECT(after.code() == status::shut_down);
}

static void buffers()
{
    tensorswap::engine engine;
    alignas(64) static std::byte memory[8192];
    int released = 0;
    {
        auto lent = tensorswap::buffer::registered(
            engine, memory, sizeof memory, [&](void* data, std::uint64_t len_bytes) noexcept {
                released += data == memory && len_bytes == sizeof memory;
            });
        EXPECT(lent.data() == memory && lent.as<double>().size() == 1024 && released == 0);
    }
    { tensorswap::engine last = std::move(engine); } // hooks have run when an engine is freed
    EXPECT(released == 1);

    tensorswap::engine other;
    int never = 0;
    const auto hook = [&never](void*, std::uint64_t) noexcept { never++; };
    EXPECT(failure_of([&] { tensorswap::buffer::registered(other, memory, 0, hook); }).code()
           == status::invalid_argument);
    EXPECT(never == 0);
    auto plain = tensorswap::buffer::registered(other, memory, sizeof memory);
    tensorswap::buffer pinned(other, 1 << 20);
    EXPECT(pinned.len_bytes() == 1 << 20 && pinned.as<float>()[99] == 0);
    EXPECT(failure_of([&] { tensorswap::buffer(other, 0); }).code() == status::invalid_argument);
    tensorswap::buffer moved = std::move(pinned);
    EXPECT(pinned.data() == nullptr && pinned.len_bytes() == 0 && moved.data() != nullptr);
}

static void swappers()
{
    tensorswap::engine engine;
    tensorswap::swapper swapper(engine);
    std::vector<float> values(50'000, 3.0f), read(50'000);
    EXPECT(!swapper.has_buffers());
    EXPECT(failure_of([&] { swapper.swap_out(const_tensor(values), "s"); }).code()
           == status::no_buffers);
    std::vector<tensorswap::buffer> buffers;
    EXPECT(failure_of([&] { swapper.add_buffers(std::move(buffers), dtype::f32); }).code()
           == status::invalid_argument);
    for (int i = 0; i < 2; i++)
        buffers.emplace_back(engine, 65536);
    swapper.add_buffers(std::move(buffers), dtype::f32);
    EXPECT(swapper.has_buffers());
    swapper.swap_out(const_tensor(values), std::filesystem::path("s"));
    swapper.submit();
    EXPECT(swapper.flush_for(1h));
    swapper.flush();
    swapper.swap_in(tensor(read), "s");
    EXPECT(read == values && swapper.stats().swap_in_tensors_count == 1);
    EXPECT(swapper.timer("swap_in").count == 1 && swapper.timer_names().size() >= 3);
    EXPECT(failure_of([&] { swapper.timer("no"); }).code() == status::invalid_argument);
    std::vector<double> doubles(3);
    EXPECT(failure_of([&] { swapper.swap_out(const_tensor(doubles), "s"); }).code()
           == status::dtype_mismatch);
    swapper.release_buffers(buffers);
    EXPECT(buffers.size() == 2 && !swapper.has_buffers());

    // A swapper that is replaced writes what was staged, and frees its buffers after that.
    swapper.add_buffers(std::move(buffers), dtype::bytes);
    values[9] = 9;
    swapper.swap_out(const_tensor(values), "s");
    swapper = tensorswap::swapper(engine);
    std::vector<float> written(50'000);
    engine.swap_in(tensor(written), "s").wait();
    EXPECT(written == values);

    // Buffers come back also where the flush failed.
    std::vector<tensorswap::buffer> one;
    one.emplace_back(engine, 65536);
    swapper.add_buffers(std::move(one), dtype::bytes);
    std::filesystem::create_directory("directory");
    swapper.swap_out(const_tensor(values), "directory");
    const auto error = failure_of([&] { swapper.release_buffers(one); });
    EXPECT(std::string(error.what()).find("directory") != std::string::npos);
    EXPECT(one.size() == 1 && one[0].data() != nullptr);
}

static void logs()
{
    std::atomic<int> lines{0};
    {
        tensorswap::log log(tensorswap::log_level::trace,
                            [&](tensorswap::log_level level, std::string_view target,
                                std::string_view line) {
                                lines += level >= tensorswap::log_level::error && !target.empty()
                                    && !line.empty();
                            });
        tensorswap::log moved = std::move(log);
        tensorswap::engine engine;
    }
    const int told = lines;
    EXPECT(told > 0);
    tensorswap::engine engine;
    EXPECT(lines == told);
}

static void optimizers()
{
    const tensorswap::config config = configured("store");
    tensorswap::engine engine(config);
    tensorswap::optimizer store(engine, config);
    EXPECT(failure_of([&] { tensorswap::optimizer(engine, config); }).code() == status::locked);
    store.add_state("master", dtype::f32);
    store.add_state("moment", dtype::f32, dtype::bf16);
    store.add_parameter(3, "layer", 1000);
    store.add_parameter(4, std::string("layer 4"), 10);

    std::vector<float> values(1000, 0.25f), read(1000);
    store.initialize(3, const_tensor(values));
    engine.swap_out(const_tensor(values.data(), 10, dtype::f32), "raw").wait();
    const std::vector<tensorswap::partition> pieces = {
        {4, 0, "raw", 4, dtype::f32}, {4, 4, const_tensor(values.data(), 6, dtype::f32)}};
    store.initialize_from_swapped(pieces);
    store.commit();
    store.read_state(3, "master", tensor(read));
    EXPECT(read == values);
    const auto error = failure_of([&] { store.read_state(5, "master", tensor(read)); });
    EXPECT(error.code() == status::unknown_parameter);

    // Gradients in pieces, and their norm.
    store.pre_backward();
    const std::vector<std::uint64_t> offsets = {0, 500};
    const std::vector<const_tensor> regions = {const_tensor(values.data(), 500, dtype::f32),
                                               const_tensor(values.data(), 500, dtype::f32)};
    store.swap_out_gradients(3, offsets, regions);
    store.swap_out_gradients(3, 0, regions[0].accumulated());
    store.flush_gradients();
    store.post_backward();
    const auto norm = store.gradient_norm(3);
    EXPECT(norm.sum_of_squares == 500 * (0.5 * 0.5 + 0.25 * 0.25) && norm.nonfinite_count == 0);

    // One parameter after the other, in an order of the caller's.
    {
        auto first = store.swap_in_state(3, 4);
        EXPECT(first.id() == 3 && first.numel() == 1000 && first.states_len() == 2);
        EXPECT(first.has_gradient() && first.gradient<float>()[0] == 0.5f);
        first.state<float>(0)[1] = 2;
        store.swap_out_state(3, tensorswap::optimizer::write::waits);
        const auto second = store.swap_in_state(4);
        EXPECT(!second.has_gradient() && second.gradient<float>().empty());
        EXPECT(second.state<float>(0)[9] == 0.25f);
        EXPECT(failure_of([&] { second.state<float>(2); }).code() == status::invalid_argument);
        EXPECT(failure_of([&] { second.state<double>(0); }).code() == status::dtype_mismatch);
        store.release_state(4);
    }
    struct progress {
        int epoch;
        double rate;
    };
    store.set_user_data(progress{3, 0.5});
    store.commit();
    EXPECT(store.step_number() == 1 && store.user_data_as<progress>()->rate == 0.5);
    EXPECT(!store.user_data_as<int>() && store.user_data().size() == sizeof(progress));
    store.read_state(3, "master", tensor(read));
    EXPECT(read[1] == 2 && read[2] == 0.25f);

    store.write_state(3, "moment", const_tensor(values));
    store.read_state(3, "moment", tensor(read));
    EXPECT(read == values);
    store.purge_state();
    store.read_state(3, "moment", tensor(read));
    EXPECT(read[0] == 0);

    // What others read and write.
    const std::vector<std::uint64_t> ids = {3, 4};
    store.export_safetensors("model.safetensors");
    store.export_safetensors(std::string("model.safetensors"), 2000);
    store.write_state(3, "master", const_tensor(values));
    store.initialize_from_safetensors("model.safetensors", ids);
    store.read_state(3, "master", tensor(read));
    EXPECT(read[1] == 2 && read[2] == 0.25f);
    store.write_state(3, "master", const_tensor(values));
    const std::vector<const char*> names = {"layer", nullptr};
    store.initialize_from_safetensors("model.safetensors.index.json", ids, names);
    store.read_state(3, "master", tensor(read));
    EXPECT(read[1] == 2 && read[2] == 0.25f);
    const tensorswap::span<const char* const> one(names.data(), 1);
    EXPECT(failure_of([&] { store.initialize_from_safetensors("raw", ids, one); }).code()
           == status::invalid_argument);
    EXPECT(failure_of([&] { store.initialize_from_safetensors("raw", ids); }).code()
           == status::corrupt);

    // A copy beside the store, and back in another one.
    store.commit();
    store.snapshot(engine, "snapshot").wait();
    EXPECT(failure_of([&] { store.snapshot(engine, "snapshot").wait(); }).os_error() == EEXIST);
    tensorswap::engine stranger;
    EXPECT(failure_of([&] { store.snapshot(stranger, "another").wait(); }).code()
           == status::invalid_argument);
    {
        tensorswap::optimizer other(engine, configured("restored"));
        EXPECT(failure_of([&] { other.restore("nowhere"); }).code() == status::not_found);
        other.add_state("master", dtype::f32);
        other.add_state("moment", dtype::f32);
        other.restore(std::string("snapshot"));
        other.read_state(3, "master", tensor(read));
        EXPECT(read[1] == 2 && read[2] == 0.25f && other.step_number() == store.step_number());
    }

    store.discard_gradients();
    EXPECT(store.gradient_norm(3).sum_of_squares == 0);
    EXPECT(store.parameters_len() == 2 && store.parameter_at(1).id == 4);
    EXPECT(store.parameter_at(1).numel == 10);
    EXPECT(failure_of([&] { store.parameter_at(2); }).code() == status::invalid_argument);
    EXPECT(store.stats().parameters_count == 2 && !store.timer_names().empty());
    EXPECT(store.timer("commit").count >= 2);

    // The store is free as soon as its owner is gone, also by assignment.
    store = tensorswap::optimizer(static_cast<tsw_optimizer*>(nullptr));
    tensorswap::optimizer again(engine, config);
    EXPECT(again.step_number() == 1 && store.step_number() == 0);
}

static void dlpack()
{
    struct {
        void* data;
        struct {
            std::int32_t device_type, device_id;
        } device;
        std::int32_t ndim;
        struct {
            std::uint8_t code, bits;
            std::uint16_t lanes;
        } type;
        std::int64_t *shape, *strides;
        std::uint64_t byte_offset;
    } described{};
    float values[6] = {};
    std::int64_t shape[] = {2, 3};
    described.data = values;
    described.device.device_type = 1; // kDLCPU
    described.ndim = 2;
    described.type = {2, 32, 1}; // kDLFloat
    described.shape = shape;
    const tensor found = tensorswap::tensor_from_dlpack(&described);
    EXPECT(found.raw().data == values && found.raw().numel == 6 && found.raw().dtype == TSW_F32);
    described.device.device_type = 2; // kDLCUDA
    EXPECT(failure_of([&] { tensorswap::tensor_from_dlpack(&described); }).code()
           == status::unsupported);
}

int main()
{
    spans();
    timeouts();
    configurations();
    requests();
    buffers();
    swappers();
    logs();
    optimizers();
    dlpack();
}
