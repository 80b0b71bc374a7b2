// Without exceptions the same functions return results. Built with -fno-exceptions.
#include "expect.hpp"

#include <thread>
#include <vector>

#if TENSORSWAP_EXCEPTIONS
#error "this program is to be built with -fno-exceptions or TENSORSWAP_NO_EXCEPTIONS"
#endif

using tensorswap::const_tensor;
using tensorswap::dtype;
using tensorswap::result;
using tensorswap::status;
using tensorswap::tensor;

// Looked at, as a result must be.
template <class T>
T taken(result<T> made)
{
    if (!made)
        std::fprintf(stderr, "%s\n", made.error().message.c_str());
    EXPECT(made);
    return *std::move(made);
}

static void good(const result<>& outcome)
{
    if (!outcome)
        std::fprintf(stderr, "%s\n", outcome.error().message.c_str());
    EXPECT(outcome);
}

static bool update(tensorswap::training_step& step)
{
    for (auto& p : step) {
        const auto weights = p.state<float>(0);
        if (!weights || weights->size() != p.numel() || (*weights).empty())
            return false;
        for (float& weight : *p.state<float>(0))
            weight += 1;
        EXPECT(p.state<double>(0).error().code == status::dtype_mismatch);
    }
    return true;
}

int main()
{
    tensorswap::config config = taken(configured("store"));
    const auto unknown = config.set("queue_dept", 3);
    EXPECT(!unknown && unknown.error().code == status::config);
    EXPECT(unknown.error().message.find("queue_depth") != std::string::npos);

    auto engine = taken(tensorswap::engine::make(config));
    std::vector<float> values(1000, 1.5f), read(1000);
    {
        auto request = taken(engine.swap_out(const_tensor(values), "file"));
        EXPECT(taken(request.wait()).bytes_done() == 4000);
        request = taken(engine.swap_in(tensor(read), "absent"));
        const auto failed = request.wait();
        EXPECT(!failed && failed.error().code == status::not_found && failed.error().os_error == 2);
    }
    std::vector<tensorswap::buffer> buffers;
    buffers.push_back(taken(tensorswap::buffer::make(engine, 65536)));
    EXPECT(tensorswap::buffer::make(engine, 0).error().code == status::invalid_argument);
    int released = 0;
    const auto hook = [&](void*, std::uint64_t) noexcept { released++; };
    EXPECT(!tensorswap::buffer::registered(engine, values.data(), 0, hook));
    EXPECT(released == 0);
    auto swapper = taken(tensorswap::swapper::make(engine));
    good(swapper.add_buffers(std::move(buffers), dtype::f32));
    good(swapper.swap_in(tensor(read), "file"));
    EXPECT(read == values && taken(swapper.flush_for(std::chrono::seconds(9))));

    auto store = taken(tensorswap::optimizer::make(engine, config));
    EXPECT(tensorswap::optimizer::make(engine, config).error().code == status::locked);
    good(store.add_state("master", dtype::f32));
    for (std::uint64_t id = 0; id < 8; id++)
        good(store.add_parameter(id, "p", 1000));
    {
        auto step = taken(store.begin_step());
        std::thread other([&] { EXPECT(update(step)); });
        EXPECT(update(step));
        other.join();
        good(step.finish());
        EXPECT(step.finish().error().code == status::null_argument);
    }
    good(store.commit());
    {
        // Left early: undone. What stopped a loop is told by the end of the step.
        auto step = taken(store.begin_step());
        for (auto& p : step) {
            (*p.state<float>(0))[0] = 99;
            break;
        }
        EXPECT(!step.finish());
    }
    good(store.read_state(5, "master", tensor(read)));
    EXPECT(store.step_number() == 1 && read == std::vector<float>(1000, 1));
    EXPECT(!store.set_user_data(nullptr, 9));
    EXPECT(taken(store.stats()).durable_step == 1);
}
