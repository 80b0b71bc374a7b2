// A step as a loop: it ends with the loop, is undone when left, and is shared by threads.
#include "expect.hpp"

#include <atomic>
#include <future>
#include <stdexcept>
#include <thread>
#include <vector>

using tensorswap::const_tensor;
using tensorswap::dtype;
using tensorswap::status;
using tensorswap::tensor;

static constexpr std::uint64_t PARAMETERS = 24, NUMEL = 5000;

static tensorswap::optimizer opened(const char* path, const char* key = "store",
                                    const char* value = "auto")
{
    tensorswap::config config = configured(path);
    config.set(key, value);
    tensorswap::engine engine(config);
    tensorswap::optimizer store(engine, config);
    store.add_state("master", dtype::f32);
    for (std::uint64_t id = 0; id < PARAMETERS; id++)
        store.add_parameter(id, "p" + std::to_string(id), NUMEL);
    return store;
}

static void swap_out_gradients(tensorswap::optimizer& store)
{
    const std::vector<float> ones(NUMEL, 1);
    for (std::uint64_t id = 0; id < PARAMETERS; id++)
        store.swap_out_gradients(id, 0, const_tensor(ones));
}

// Whether every element of every parameter has this value.
static bool all_are(tensorswap::optimizer& store, float value)
{
    std::vector<float> values(NUMEL);
    for (std::uint64_t id = 0; id < PARAMETERS; id++) {
        store.read_state(id, "master", tensor(values));
        for (const float found : values)
            if (found != value)
                return false;
    }
    return true;
}

static void update(tensorswap::parameter& p)
{
    const auto gradient = p.gradient<float>();
    auto weights = p.state<float>(0);
    for (std::size_t i = 0; i < weights.size(); i++)
        weights[i] -= gradient[i];
}

static void one_loop()
{
    auto store = opened("one_loop");
    swap_out_gradients(store);
    std::size_t count = 0;
    for (auto& p : store.step()) {
        count++;
        if (p.id() % 2 == 1) {
            p.unchanged();
            continue; // gives back too
        }
        update(p);
    }
    EXPECT(count == PARAMETERS && store.step_number() == 1);
    store.commit();
    EXPECT(store.stats().step_written_bytes == PARAMETERS / 2 * 20480); // those that were changed
    const std::uint64_t some[] = {1, 3};
    swap_out_gradients(store);
    for (auto& p : store.step(some)) {
        EXPECT(p.id() == 1 || p.id() == 3);
        update(p);
    }
    store.commit();
    std::vector<float> values(NUMEL);
    for (std::uint64_t id = 0; id < PARAMETERS; id++) {
        store.read_state(id, "master", tensor(values));
        EXPECT(values[NUMEL - 1] == (id % 2 == 0 || id == 1 || id == 3 ? -1.0f : 0.0f));
    }
    // Nothing may go wrong between the loop and the end of the step without being told.
    EXPECT(store.step_number() == 2 && store.stats().durable_step == 2);
}

static void left_early()
{
    auto store = opened("left_early");
    swap_out_gradients(store);
    for (auto& p : store.step())
        update(p);
    EXPECT(all_are(store, -1));

    // Left by break: the one that is out and those given back before are as they were.
    swap_out_gradients(store);
    int count = 0;
    for (auto& p : store.step()) {
        update(p);
        if (++count == 5)
            break;
    }
    EXPECT(count == 5 && store.step_number() == 1 && all_are(store, -1));

    // Left by an exception, which is not replaced by another one.
    swap_out_gradients(store);
    try {
        for (auto& p : store.step()) {
            update(p);
            if (++count == 10)
                throw std::logic_error("mine");
        }
        EXPECT(count < 10);
    } catch (const std::logic_error& error) {
        EXPECT(std::string(error.what()) == "mine");
    }
    EXPECT(count == 10 && store.step_number() == 1 && all_are(store, -1));

    // What another thread, or a later loop, makes of a step that was left: nothing.
    swap_out_gradients(store);
    {
        auto step = store.begin_step();
        for (auto& p : step) {
            update(p);
            break;
        }
        EXPECT(failure_of([&] { for (auto& p : step) update(p); }).code() == status::cancelled);
        EXPECT(failure_of([&] { step.finish(); }).code() != status::ok);
    }
    EXPECT(store.step_number() == 1 && all_are(store, -1));

    // A step that nobody finished, and one that was aborted.
    swap_out_gradients(store);
    {
        auto step = store.begin_step();
        for (auto& p : step)
            update(p);
    }
    EXPECT(store.step_number() == 1 && all_are(store, -1));
    swap_out_gradients(store);
    auto aborted = store.begin_step();
    tensorswap::parameter p;
    EXPECT(aborted.next(p) && p.numel() == NUMEL);
    update(p);
    EXPECT(failure_of([&] { aborted.finish(); }).code() == status::busy);
    EXPECT(failure_of([&] { aborted.abort(); }).code() == status::busy);
    aborted.done(p);
    aborted.abort();
    EXPECT(all_are(store, -1));

    // One that is left by an exception with a parameter out that `next` gave.
    swap_out_gradients(store);
    try {
        auto step = store.begin_step();
        EXPECT(step.next(p));
        update(p);
        throw std::logic_error("mine");
    } catch (const std::logic_error&) {
    }
    EXPECT(store.step_number() == 1 && all_are(store, -1));

    // A step over no parameters is not one over all of them.
    const std::vector<std::uint64_t> nobody;
    for (auto& given : store.step(nobody))
        EXPECT(given.numel() == 0);
    EXPECT(store.step_number() == 2 && all_are(store, -1));

    // And it goes on.
    swap_out_gradients(store);
    for (auto& next : store.step())
        update(next);
    store.commit();
    EXPECT(store.step_number() == 3 && all_are(store, -2));
}

// Without a commit for each step there may be nothing to go back to: then the step goes on.
static void left_early_without_commits()
{
    auto store = opened("uncommitted", "sync", "none");
    for (int i = 0; i < 2; i++) {
        swap_out_gradients(store);
        for (auto& p : store.step())
            update(p);
    }
    swap_out_gradients(store);
    auto step = store.begin_step();
    for (auto& p : step) {
        update(p);
        if (p.id() % 2 == 0)
            break;
    }
    EXPECT(failure_of([&] { step.finish(); }).code() == status::busy);
    EXPECT(failure_of([&] { step.abort(); }).code() == status::unsupported);
    for (auto& p : step)
        update(p);
    step.finish();
    store.commit();
    EXPECT(store.step_number() == 3 && all_are(store, -3));
}

static void several_threads()
{
    auto store = opened("several_threads");
    for (int round = 1; round <= 3; round++) {
        swap_out_gradients(store);
        auto step = store.begin_step();
        std::atomic<std::uint64_t> count{0};
        std::vector<std::thread> threads;
        for (int i = 0; i < 4; i++)
            threads.emplace_back([&] {
                for (auto& p : step) {
                    update(p);
                    count++;
                }
            });
        for (auto& thread : threads)
            thread.join();
        EXPECT(count == PARAMETERS);
        store.set_user_data(round);
        step.finish();
        EXPECT(failure_of([&] { step.finish(); }).code() == status::null_argument);
    }
    store.commit();
    EXPECT(store.step_number() == 3 && all_are(store, -3) && store.user_data_as<int>() == 3);

    // One thread throws: the loops of the others end with cancelled, and the step is undone.
    swap_out_gradients(store);
    int thrown = 0, cancelled = 0;
    {
        auto step = store.begin_step();
        std::atomic<int> arrived{0};
        std::vector<std::future<void>> threads;
        for (int i = 0; i < 3; i++)
            threads.push_back(std::async(std::launch::async, [&, i] {
                bool is_first = true;
                for (auto& p : step) {
                    update(p);
                    if (std::exchange(is_first, false))
                        arrived++; // nobody goes on before all three hold a parameter
                    while (arrived < 3)
                        std::this_thread::yield();
                    if (i == 0)
                        throw std::runtime_error("mine");
                }
            }));
        for (auto& thread : threads)
            try {
                thread.get();
            } catch (const tensorswap::error& error) {
                EXPECT(error.code() == status::cancelled);
                cancelled++;
            } catch (const std::runtime_error&) {
                thrown++;
            }
    }
    EXPECT(thrown == 1 && cancelled <= 2);
    EXPECT(store.step_number() == 3 && all_are(store, -3));

    // The parameter may be given back by another thread than the one that got it.
    swap_out_gradients(store);
    auto step = store.begin_step();
    tensorswap::parameter p;
    while (step.next(p)) {
        update(p);
        std::thread([&] { step.done(p); }).join();
    }
    tensorswap::training_step moved = std::move(step);
    moved.finish();
    store.commit();
    EXPECT(all_are(store, -4));
}

// What is wrong with a step is thrown by the loop, not lost in a destructor.
static void failures()
{
    auto store = opened("failures");
    {
        auto open = store.begin_step();
        EXPECT(failure_of([&] { for (auto& p : store.step()) update(p); }).code() == status::busy);
    }
    const std::uint64_t unknown[] = {99};
    EXPECT(failure_of([&] { store.begin_step(unknown).finish(); }).code()
           == status::unknown_parameter);
    const std::uint64_t none[] = {0};
    for (auto& p : store.step({none, 1}))
        EXPECT(failure_of([&] { p.gradient<double>(); p.state<double>(0); }).code()
               == status::dtype_mismatch);
    EXPECT(store.step_number() == 1);

    // More views than `views_max`: told at once.
    auto step = store.begin_step();
    std::vector<tensorswap::parameter> held(4);
    for (auto& p : held)
        EXPECT(step.next(p));
    tensorswap::parameter more;
    EXPECT(failure_of([&] { step.next(more); }).code() == status::no_buffers);
    EXPECT(failure_of([&] { for (auto& p : step) update(p); }).code() == status::no_buffers);
    for (const auto& p : held)
        step.done(p);
}

int main()
{
    one_loop();
    left_early();
    left_early_without_commits();
    several_threads();
    failures();
}
