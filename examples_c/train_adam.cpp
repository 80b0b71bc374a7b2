/* The training of train_adam.c, written with tensorswap.hpp: the same options, the same store, the
 * same bits. What happens in it is explained there; here objects free themselves, failures are
 * thrown, and a step is a loop. */
#include "train_run.h"

#include <tensorswap.hpp>

#include <algorithm>
#include <atomic>
#include <cinttypes>
#include <cstring>
#include <future>
#include <string>
#include <vector>

namespace {

/* A run of parameters of one layer: one record of the store. Its place in the list is its id. */
struct piece {
    std::size_t first, count;
    std::string name;

    tensorswap::span<float> of(float* values) const { return {values + first, count}; }
};

class training {
public:
    training(const options& options, const text& text)
        : options_(options), text_(text),
          model_(model_new(text.alphabet, static_cast<std::size_t>(options.hidden),
                           static_cast<std::uint64_t>(options.seed)), model_free),
          directory_(options.store != nullptr ? options.store : temporary_directory(".")),
          progress_(progress_begin(&text, model_.get()))
    {
        /* Every layer is cut into records of at most a sixteenth of all parameters. */
        const std::size_t count_max = model_->parameters / 16 + 1;
        for (const layer& layer : model_->layers)
            for (std::size_t done = 0; done < layer.count; done += count_max)
                pieces_.push_back({layer.first + done, std::min(layer.count - done, count_max),
                                   layer.name + ("/" + std::to_string(done / count_max))});
        round_state(&options_, MASTER, model_->weights, model_->parameters);
    }

    /* Trains up to the last step, opens the store anew and looks at what it holds. */
    bool run()
    {
        auto store = std::make_unique<tensorswap::optimizer>(open(options_.resume ? "existing" : "new"));
        if (!options_.resume)
            initialize(*store);
        for (auto& values : reference_)
            values.resize(options_.verify ? model_->parameters : 0);
        std::copy_n(model_->weights, reference_[MASTER].size(), reference_[MASTER].data());
        bool good = !options_.resume || resume(*store);
        while (good && step_ < options_.steps && !interrupted) {
            train_step(store.get());
            show_progress(*store);
        }
        store->commit();
        if (options_.export_to != nullptr)
            store->export_safetensors(options_.export_to);
        store.reset();

        auto reopened = open("existing");
        good = good && (!options_.verify || interrupted || verify(reopened));
        if (good)
            std::printf("checksum after step %" PRIu64 ": %016" PRIx64 "\n",
                        reopened.step_number(), checksum(reopened));
        return good;
    }

private:
    /* Opens the store: `mode` is "new" or "existing". */
    tensorswap::optimizer open(const char* mode) const
    {
        tensorswap::config config;
        config.set("path", directory_);
        config.set("store", mode);
        config.set("views_max", options_.threads); /* one for each thread */
        for (int i = 0; i < options_.settings_len; i++) {
            const std::string setting = options_.settings[i];
            const auto equals = setting.find('=');
            if (equals == std::string::npos)
                fail("--set", "KEY=VALUE is expected");
            config.set(setting.substr(0, equals), setting.substr(equals + 1));
        }
        tensorswap::engine engine(config); /* the optimizer keeps what it needs of it alive */
        tensorswap::optimizer store(engine, config);
        for (int state = 0; state < STATES; state++)
            store.add_state(state_names[state], tensorswap::dtype::f32,
                            tensorswap::dtype{options_.disk_types[state]});
        for (std::size_t id = 0; id < pieces_.size(); id++)
            store.add_parameter(id, pieces_[id].name, pieces_[id].count);
        return store;
    }

    /* Puts the state before the first step into the store: the weights are the masters, or with
     * --init the tensors with the names of the records. */
    void initialize(tensorswap::optimizer& store)
    {
        for (std::uint64_t id = 0; id < pieces_.size(); id++)
            if (options_.init_from != nullptr)
                store.initialize_from_safetensors(options_.init_from, {&id, 1});
            else
                store.initialize(id, tensorswap::const_tensor(pieces_[id].of(model_->weights)));
        if (options_.init_from != nullptr)
            read_weights(store);
        store.set_user_data(progress_);
        store.commit();
    }

    /* The masters become the working copies of the weights. */
    void read_weights(tensorswap::optimizer& store)
    {
        for (std::size_t id = 0; id < pieces_.size(); id++)
            store.read_state(id, state_names[MASTER],
                             tensorswap::tensor(pieces_[id].of(model_->weights)));
    }

    /* Takes up the run that the store holds. With --verify the steps up to there are repeated in
     * memory and must have led to the same bits. */
    bool resume(tensorswap::optimizer& store)
    {
        const auto stored = store.user_data_as<progress>();
        const auto steps = static_cast<int>(store.step_number());
        if (!stored || stored->text_len != text_.len)
            fail("--resume", "the store holds no training with this text");
        std::printf("resumed after step %d, loss %.3f\n", steps, stored->loss_mean);

        while (options_.verify && !interrupted && step_ < steps)
            train_step(nullptr);
        step_ = steps;
        progress_ = *stored;
        model_->random = stored->random;
        read_weights(store);
        return !options_.verify || interrupted || verify(store);
    }

    /* One of the threads that update records until none is left. */
    void update_records(tensorswap::training_step& step)
    {
        for (auto& record : step) {
            float* const states[STATES] = {record.state<float>(MASTER).data(),
                                           record.state<float>(EXP_AVG).data(),
                                           record.state<float>(EXP_AVG_SQ).data()};
            const auto weights = pieces_[record.id()].of(model_->weights);
            adam_update(states, record.gradient<float>().data(), weights.size(), step_,
                        static_cast<float>(progress_.rate));
            std::copy_n(states[MASTER], weights.size(), weights.data());
            round_state(&options_, MASTER, weights.data(), weights.size());
            if (given_back_++ == pieces_.size() / 2 && step_ == options_.crash_at)
                crash(step_);
        }
    }

    /* Swaps the gradients out, and updates every record in as many threads as were asked for. */
    tensorswap::training_step step_on_storage(tensorswap::optimizer& store)
    {
        for (std::size_t id = 0; id < pieces_.size(); id++)
            store.swap_out_gradients(
                id, 0, tensorswap::const_tensor(pieces_[id].of(model_->gradients)));
        given_back_ = 0;
        auto step = store.begin_step();
        std::vector<std::future<void>> others;
        for (long i = 1; i < options_.threads; i++)
            others.push_back(std::async(std::launch::async, [&] { update_records(step); }));
        update_records(step);
        for (auto& other : others)
            other.get(); /* throws what was thrown there */
        return step;
    }

    void step_in_memory()
    {
        float* const states[STATES] = {reference_[MASTER].data(), reference_[EXP_AVG].data(),
                                       reference_[EXP_AVG_SQ].data()};
        adam_update(states, model_->gradients, reference_[MASTER].size(), step_,
                    static_cast<float>(progress_.rate));
        for (int state = 0; state < STATES; state++)
            round_state(&options_, state, states[state], reference_[state].size());
    }

    /* One step; without a store in memory alone. */
    void train_step(tensorswap::optimizer* store)
    {
        step_++;
        model_draw_batch(model_.get(), &text_);
        const double loss = model_forward(model_.get());
        model_backward(model_.get());
        std::optional<tensorswap::training_step> step;
        if (store != nullptr)
            step.emplace(step_on_storage(*store));
        step_in_memory();
        if (store == nullptr)
            std::copy(reference_[MASTER].begin(), reference_[MASTER].end(), model_->weights);
        progress_advance(&progress_, model_.get(), step_, loss);
        if (step) {
            store->set_user_data(progress_);
            step->finish(); /* durable in the background */
        }
    }

    /* Calls `look(id, state, values)` with all that the store holds. */
    template <class Look>
    void read_all(tensorswap::optimizer& store, Look look) const
    {
        for (std::size_t id = 0; id < pieces_.size(); id++)
            for (int state = 0; state < STATES; state++) {
                std::vector<float> values(pieces_[id].count);
                store.read_state(id, state_names[state], tensorswap::tensor(values));
                look(id, state, values);
            }
    }

    /* Compares what the store holds with the training in memory. */
    bool verify(tensorswap::optimizer& store) const
    {
        const auto same = [](const float* left, const float* right, std::size_t count) {
            return std::memcmp(left, right, count * sizeof(float)) == 0;
        };
        bool good = same(model_->weights, reference_[MASTER].data(), model_->parameters);
        read_all(store, [&](std::size_t id, int state, const std::vector<float>& values) {
            good &= same(values.data(), &reference_[state][pieces_[id].first], values.size());
        });
        if (good)
            std::printf("verify: equal bit for bit (%zu bytes) after step %d\n",
                        STATES * model_->parameters * sizeof(float), step_);
        else
            std::printf("verify: different bits after step %d\n", step_);
        return good;
    }

    /* One number for every bit that the store holds (FNV-1a). */
    std::uint64_t checksum(tensorswap::optimizer& store) const
    {
        std::uint64_t sum = 0xcbf29ce484222325;
        read_all(store, [&](std::size_t, int, const std::vector<float>& values) {
            const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
            for (std::size_t i = 0; i < values.size() * sizeof(float); i++)
                sum = (sum ^ bytes[i]) * 0x100000001b3;
        });
        return sum;
    }

    void show_progress(const tensorswap::optimizer& store) const
    {
        if (step_ % std::max(options_.steps / 5, 1L) != 0 && step_ != 1 && !interrupted)
            return;
        const auto figures = store.stats();
        std::printf("step %4d/%ld  loss %.3f  read %5.1f MiB  written %5.1f MiB  update %6.1f ms\n",
                    step_, options_.steps, progress_.loss_mean, mib(figures.step_read_bytes),
                    mib(figures.step_written_bytes), ms(figures.step_ns));
    }

    const options& options_;
    const text& text_;
    std::unique_ptr<model, decltype(&model_free)> model_;
    std::vector<piece> pieces_;
    std::string directory_;
    progress progress_;
    std::vector<float> reference_[STATES];   /* the same training in memory, with --verify */
    int step_ = 0;                           /* the one that is under way or was done last */
    std::atomic<std::size_t> given_back_{0}; /* records of this step */
};

} /* namespace */

int main(int argc, char** argv)
{
    const options options = parse_options(argc, argv);
    catch_signals();
    const text text = text_of_arguments(argc, argv);
    const std::unique_ptr<unsigned char, decltype(&std::free)> symbols(text.symbols, std::free);
    try {
        const bool good = training(options, text).run();
        return interrupted ? 128 + interrupted : good ? EXIT_SUCCESS : EXIT_FAILURE;
    } catch (const tensorswap::error& error) {
        fail(tensorswap::name(error.code()), error.what());
    }
}
