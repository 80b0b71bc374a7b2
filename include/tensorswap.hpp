/* tensorswap for C++17 and later: thin classes over the functions of tensorswap.h, header only.
 *
 * A class owns its handle, moves and does not copy. What the C header says of a function holds for
 * the one here: threads, waiting, what fails when. Nothing is added per byte.
 *
 *     tensorswap::config config;
 *     config.set("path", "/mnt/nvme/run1");
 *     tensorswap::engine engine(config);
 *     tensorswap::optimizer optimizer(engine, config);    // opens the store there, or makes one
 *     optimizer.add_state("master", tensorswap::dtype::f32);
 *     optimizer.add_state("momentum", tensorswap::dtype::f32, tensorswap::dtype::bf16);
 *     optimizer.add_parameter(7, "layer0", 1000000);
 *
 *     optimizer.swap_out_gradients(7, 0, tensorswap::const_tensor(gradient));
 *     for (auto& p : optimizer.step())                    // begins, reads ahead, ends
 *         update(p.state<float>(0), p.state<float>(1), p.gradient<float>());
 *     optimizer.commit();                                 // durable when this returns
 *
 * Errors. A function that fails throws `tensorswap::error`: status, errno and message. Built with
 * -fno-exceptions, or with TENSORSWAP_NO_EXCEPTIONS defined, the same functions return a
 * `tensorswap::result<T>` instead, which holds either the value or a `tensorswap::failure`, and
 * objects are made by `make`: `auto engine = tensorswap::engine::make(config)`. A result must be
 * looked at, and ends the program when its value is taken where there is none. Both ways may be
 * linked into one program. The allocations of std::string and std::vector fail as they always do.
 *
 * A moved-from object holds nothing: functions on it fail with null_argument.
 *
 * Lifetimes. A request must not outlive its engine, nor a training_step its optimizer. All else
 * may be destroyed in any order. Apache-2.0 OR MIT. */
#ifndef TENSORSWAP_HPP
#define TENSORSWAP_HPP

#if __cplusplus < 201703L && (!defined(_MSVC_LANG) || _MSVC_LANG < 201703L)
#error "tensorswap.hpp needs C++17 or later"
#endif

#include "tensorswap.h"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>
#if defined(__cpp_exceptions) && !defined(TENSORSWAP_NO_EXCEPTIONS)
#include <stdexcept>
#define TENSORSWAP_EXCEPTIONS 1
#define TENSORSWAP_MODE throwing
#else
#include <variant>
#define TENSORSWAP_EXCEPTIONS 0
#define TENSORSWAP_MODE returning
#endif
#if __cplusplus >= 202002L
#include <span>
#endif

static_assert(TSW_ABI == 1, "tensorswap.h and tensorswap.hpp are of different releases");

namespace tensorswap {
// Both ways of telling errors have names of their own, so that both can be in one program.
inline namespace TENSORSWAP_MODE {

// ---- numbers with names -------------------------------------------------------------------------

/// The outcome of a call: zero is success, positive is information, negative is an error. A later
/// library may return numbers that have no name here.
enum class status : tsw_status {
    ok = TSW_OK,
    end = TSW_END,
    null_argument = TSW_ERR_NULL_ARGUMENT,
    invalid_argument = TSW_ERR_INVALID_ARGUMENT,
    dtype_mismatch = TSW_ERR_DTYPE_MISMATCH,
    bad_ticket = TSW_ERR_BAD_TICKET,
    unknown_parameter = TSW_ERR_UNKNOWN_PARAMETER,
    config = TSW_ERR_CONFIG,
    forked = TSW_ERR_FORKED,
    busy = TSW_ERR_BUSY,
    no_buffers = TSW_ERR_NO_BUFFERS,
    shut_down = TSW_ERR_SHUT_DOWN,
    poisoned = TSW_ERR_POISONED,
    timed_out = TSW_ERR_TIMED_OUT,
    cancelled = TSW_ERR_CANCELLED,
    locked = TSW_ERR_LOCKED,
    io = TSW_ERR_IO,
    no_space = TSW_ERR_NO_SPACE,
    not_found = TSW_ERR_NOT_FOUND,
    size_mismatch = TSW_ERR_SIZE_MISMATCH,
    checksum = TSW_ERR_CHECKSUM,
    permission = TSW_ERR_PERMISSION,
    corrupt = TSW_ERR_CORRUPT,
    no_memory = TSW_ERR_NO_MEMORY,
    memlock = TSW_ERR_MEMLOCK,
    budget = TSW_ERR_BUDGET,
    unsupported = TSW_ERR_UNSUPPORTED,
    internal = TSW_ERR_INTERNAL,
};

/// Tell the name of a status, such as "TSW_ERR_NO_SPACE".
inline const char* name(status code) noexcept
{
    return tsw_status_name(static_cast<tsw_status>(code));
}

/// Tell whether the same call can succeed later with the same arguments.
inline bool is_retryable(status code) noexcept
{
    return tsw_status_is_retryable(static_cast<tsw_status>(code)) != 0;
}

/// Element types.
enum class dtype : std::uint32_t {
    bytes = TSW_BYTES,
    f32 = TSW_F32,
    f16 = TSW_F16,
    bf16 = TSW_BF16,
    f64 = TSW_F64,
    f8_e4m3 = TSW_F8_E4M3,
    f8_e5m2 = TSW_F8_E5M2,
    i8 = TSW_I8,
    i16 = TSW_I16,
    i32 = TSW_I32,
    i64 = TSW_I64,
    u8 = TSW_U8,
    u16 = TSW_U16,
    u32 = TSW_U32,
    u64 = TSW_U64,
    boolean = TSW_BOOL,
};

/// Tell the name of an element type, such as "bf16".
inline const char* name(dtype type) noexcept
{
    return tsw_dtype_name(static_cast<std::uint32_t>(type));
}

/// Tell the size of one element in bytes.
inline std::uint64_t size_bytes(dtype type) noexcept
{
    return tsw_dtype_size(static_cast<std::uint32_t>(type));
}

/// The bits of a number that standard C++ has no type for.
enum class f16_bits : std::uint16_t {};
enum class bf16_bits : std::uint16_t {};

/// The element type of a C++ type. Specialize it for a type of your own, such as a compiler's bf16:
///
///     template <> inline constexpr tensorswap::dtype tensorswap::dtype_of<__nv_bfloat16> = ...
template <class T>
inline constexpr dtype dtype_of = [] {
    static_assert(!sizeof(T), "this type has no dtype: specialize tensorswap::dtype_of for it");
    return dtype::bytes;
}();
template <> inline constexpr dtype dtype_of<std::byte> = dtype::bytes;
template <> inline constexpr dtype dtype_of<float> = dtype::f32;
template <> inline constexpr dtype dtype_of<f16_bits> = dtype::f16;
template <> inline constexpr dtype dtype_of<bf16_bits> = dtype::bf16;
template <> inline constexpr dtype dtype_of<double> = dtype::f64;
template <> inline constexpr dtype dtype_of<std::int8_t> = dtype::i8;
template <> inline constexpr dtype dtype_of<std::int16_t> = dtype::i16;
template <> inline constexpr dtype dtype_of<std::int32_t> = dtype::i32;
template <> inline constexpr dtype dtype_of<std::int64_t> = dtype::i64;
template <> inline constexpr dtype dtype_of<std::uint8_t> = dtype::u8;
template <> inline constexpr dtype dtype_of<std::uint16_t> = dtype::u16;
template <> inline constexpr dtype dtype_of<std::uint32_t> = dtype::u32;
template <> inline constexpr dtype dtype_of<std::uint64_t> = dtype::u64;
template <> inline constexpr dtype dtype_of<bool> = dtype::boolean;

/// How much of the log is told.
enum class log_level : std::uint32_t {
    off = TSW_LOG_OFF,
    error = TSW_LOG_ERROR,
    warn = TSW_LOG_WARN,
    info = TSW_LOG_INFO,
    debug = TSW_LOG_DEBUG,
    trace = TSW_LOG_TRACE,
};

/// No parameter has this id.
inline constexpr std::uint64_t no_parameter = TSW_NO_PARAMETER;

/// Figures, as the C header describes them.
using engine_stats = tsw_engine_stats;
using swapper_stats = tsw_swapper_stats;
using optimizer_stats = tsw_optimizer_stats;
using timer = tsw_timer;

/// Tell the number of the library's binary interface; TSW_ABI is the header's.
inline std::uint32_t abi() noexcept { return tsw_abi(); }

/// Tell the library's version, such as "0.1.0"; TSW_VERSION is the header's.
inline const char* version() noexcept { return tsw_version(); }

// ---- errors -------------------------------------------------------------------------------------

/// What went wrong: status, errno (0 where there is none), and one line of text.
struct failure {
    status code;
    int os_error;
    std::string message;
};

namespace detail {

// A text that the library copies out, however long it is and however it grows meanwhile.
template <class Fill>
std::string text_from(Fill fill)
{
    std::string text;
    std::size_t length = fill(nullptr, 0);
    do {
        text.resize(length);
        length = fill(text.data(), text.size() + 1); // the NUL goes where a string has its own
    } while (length > text.size());
    text.resize(length);
    return text;
}

inline failure last_failure(tsw_status code)
{
    return {static_cast<status>(code), tsw_last_error_os(), text_from(tsw_last_error_message)};
}

} // namespace detail

#if TENSORSWAP_EXCEPTIONS

/// What is thrown. `what()` is one line with operation, path, offset and errno.
class error : public std::runtime_error {
public:
    explicit error(const failure& why)
        : std::runtime_error(why.message), code_(why.code), os_error_(why.os_error)
    {
    }

    status code() const noexcept { return code_; }
    /// The errno behind it; 0 where there is none.
    int os_error() const noexcept { return os_error_; }
    /// Whether the same call can succeed later with the same arguments.
    bool is_retryable() const noexcept { return tensorswap::is_retryable(code_); }

private:
    status code_;
    int os_error_;
};

/// What a function that can fail returns: the value itself, as failures are thrown.
template <class T = void>
using result = T;

namespace detail {

template <class T>
[[noreturn]] T fail(const failure& why)
{
    throw error(why);
}

inline void check(tsw_status code)
{
    if (code < 0)
        throw error(last_failure(code));
}

template <class Make>
auto check(tsw_status code, Make make) -> decltype(make())
{
    check(code);
    return make();
}

} // namespace detail

#else

/// What a function that can fail returns: a value or a failure.
template <class T = void>
class [[nodiscard]] result {
public:
    result(T value) : outcome_(std::in_place_index<0>, std::move(value)) {}
    result(failure why) : outcome_(std::in_place_index<1>, std::move(why)) {}

    explicit operator bool() const noexcept { return outcome_.index() == 0; }
    T& operator*() & noexcept { return value(); }
    /// A value, not a reference: `for (float& x : *p.state<float>(0))` must not outlive its result.
    T operator*() && { return std::move(value()); }
    const T& operator*() const& noexcept { return taken(std::get_if<0>(&outcome_)); }
    T* operator->() noexcept { return &value(); }
    const T* operator->() const noexcept { return &**this; }
    /// The failure; ends the program where there is a value.
    const failure& error() const noexcept { return taken(std::get_if<1>(&outcome_)); }

private:
    template <class Part>
    static Part& taken(Part* part) noexcept
    {
        if (part == nullptr)
            std::abort();
        return *part;
    }
    T& value() noexcept { return taken(std::get_if<0>(&outcome_)); }

    std::variant<T, failure> outcome_;
};

template <>
class [[nodiscard]] result<void> {
public:
    result() = default;
    result(failure why) : why_(std::move(why)) {}

    explicit operator bool() const noexcept { return !why_; }
    /// The failure; ends the program where there is none.
    const failure& error() const noexcept
    {
        if (!why_)
            std::abort();
        return *why_;
    }

private:
    std::optional<failure> why_;
};

namespace detail {

template <class T>
result<T> fail(failure why)
{
    return result<T>(std::move(why));
}

inline result<void> check(tsw_status code)
{
    return code < 0 ? result<void>(last_failure(code)) : result<void>();
}

template <class Make>
auto check(tsw_status code, Make make) -> result<decltype(make())>
{
    if (code < 0)
        return last_failure(code);
    return make();
}

} // namespace detail

#endif

// ---- small types --------------------------------------------------------------------------------

/// A view of elements that lie one after the other; to and from std::span and every container with
/// data() and size().
template <class T>
class span {
public:
    using element_type = T;
    using value_type = std::remove_cv_t<T>;
    using size_type = std::size_t;
    using iterator = T*;

    constexpr span() noexcept = default;
    constexpr span(T* data, std::size_t size) noexcept : data_(data), size_(size) {}
    template <std::size_t N>
    constexpr span(T (&array)[N]) noexcept : data_(array), size_(N)
    {
    }
    template <class Range,
              class Element = std::remove_pointer_t<decltype(std::declval<Range&>().data())>,
              class = std::enable_if_t<std::is_convertible_v<Element (*)[], T (*)[]>>>
    constexpr span(Range&& range) noexcept : data_(range.data()), size_(range.size())
    {
    }

    constexpr T* data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr std::size_t size_bytes() const noexcept { return size_ * sizeof(T); }
    constexpr bool empty() const noexcept { return size_ == 0; }
    constexpr T* begin() const noexcept { return data_; }
    constexpr T* end() const noexcept { return data_ + size_; }
    constexpr T& operator[](std::size_t index) const noexcept
    {
        assert(index < size_);
        return data_[index];
    }
    constexpr span first(std::size_t count) const noexcept { return subspan(0, count); }
    constexpr span subspan(std::size_t from, std::size_t count) const noexcept
    {
        assert(from <= size_ && count <= size_ - from);
        return {data_ + from, count};
    }

private:
    T* data_ = nullptr;
    std::size_t size_ = 0;
};

template <class Range>
span(Range&& range) -> span<std::remove_pointer_t<decltype(std::declval<Range&>().data())>>;
template <class T, std::size_t N>
span(T (&)[N]) -> span<T>;

/// Text that ends with a NUL: a literal, a std::string, a std::filesystem::path. For arguments.
class text {
public:
    text(const char* characters) noexcept : characters_(characters) {}
    template <class String,
              class = std::enable_if_t<std::is_convertible_v<
                  decltype(std::declval<const String&>().c_str()), const char*>>>
    text(const String& string) noexcept : characters_(string.c_str())
    {
    }
    const char* get() const noexcept { return characters_; }

private:
    const char* characters_;
};

/// How long to wait: any std::chrono duration. A negative one is none.
class timeout {
public:
    template <class Rep, class Period>
    constexpr timeout(std::chrono::duration<Rep, Period> duration)
    {
        using std::chrono::nanoseconds;
        using seconds = std::chrono::duration<double>; // hours::max() has no nanoseconds
        if (seconds(duration) >= seconds(nanoseconds::max()))
            count_ns_ = TSW_WAIT_FOREVER;
        else if (seconds(duration) > seconds::zero())
            count_ns_ =
                static_cast<std::uint64_t>(std::chrono::ceil<nanoseconds>(duration).count());
    }
    constexpr std::uint64_t count_ns() const noexcept { return count_ns_; }

private:
    std::uint64_t count_ns_ = 0;
};

namespace detail {

template <auto Free>
struct free_with {
    template <class Handle>
    void operator()(Handle* handle) const noexcept
    {
        Free(handle);
    }
};

// Owns a handle of the library.
template <class Handle, void (*Free)(Handle*)>
using owner = std::unique_ptr<Handle, free_with<Free>>;

// A structure that begins with its size, as the library wants it.
template <class Structure>
Structure sized() noexcept
{
    Structure structure{};
    structure.struct_size = static_cast<std::uint32_t>(sizeof(Structure));
    return structure;
}

// Whether a wait came to its end in time.
inline result<bool> in_time(tsw_status code)
{
    if (code == TSW_ERR_TIMED_OUT)
        return false;
    return check(code, [] { return true; });
}

inline failure lists_differ(std::size_t tensors, std::size_t others, const char* what = " places")
{
    return {status::invalid_argument, 0,
            std::to_string(tensors) + " tensors and " + std::to_string(others) + what
                + ": the lists are to be of one length"};
}

} // namespace detail

// ---- tensors ------------------------------------------------------------------------------------

/// Elements in memory and their place in a file. It owns nothing: the memory must stay until the
/// request is over.
///
/// `const_tensor` is read from, for swapping out; `tensor` is also written to, for swapping in.
template <bool IsConst>
class basic_tensor {
    template <class T>
    using maybe_const = std::conditional_t<IsConst, const T, T>;

public:
    /// All elements of a container or span; their type tells the dtype.
    template <class Range,
              class Element = std::remove_pointer_t<decltype(std::declval<Range&>().data())>,
              class = std::enable_if_t<IsConst || !std::is_const_v<Element>>>
    explicit basic_tensor(Range&& values)
        : basic_tensor(values.data(), values.size(), dtype_of<std::remove_cv_t<Element>>)
    {
        // A container that ends with the expression gives const elements when it is const; a view
        // does not.
        using of_const = decltype(std::declval<const Range&>().data());
        static_assert(std::is_lvalue_reference_v<Range> || std::is_same_v<of_const, Element*>,
                      "a tensor does not keep the container that it points into");
    }
    basic_tensor(maybe_const<void>* data, std::uint64_t numel, dtype type) noexcept
    {
        raw_.data = const_cast<void*>(data); // a const_tensor is only ever swapped out
        raw_.numel = numel;
        raw_.dtype = static_cast<std::uint32_t>(type);
    }
    /// What may be written may be read.
    template <bool OtherIsConst, class = std::enable_if_t<IsConst && !OtherIsConst>>
    basic_tensor(const basic_tensor<OtherIsConst>& other) noexcept : raw_(other.raw())
    {
    }
    /// As C has it: `tsw_tensor_from_dlpack`, say.
    explicit basic_tensor(const tsw_tensor& raw) noexcept : raw_(raw) {}

    /// The same tensor, this many bytes into its file.
    basic_tensor at(std::uint64_t file_offset) const noexcept
    {
        return with([&](tsw_tensor& raw) { raw.file_offset = file_offset; });
    }
    /// The same tensor, with a number that its completion carries.
    basic_tensor tagged(std::uint64_t user_tag) const noexcept
    {
        return with([&](tsw_tensor& raw) { raw.user_tag = user_tag; });
    }
    /// The same tensor, which as a gradient is added to what is there.
    basic_tensor accumulated() const noexcept
    {
        return with([](tsw_tensor& raw) { raw.flags |= TSW_TENSOR_ACCUMULATE; });
    }
    /// The same tensor, whose file is not cut to the end of the request.
    basic_tensor keeping_length() const noexcept
    {
        return with([](tsw_tensor& raw) { raw.flags |= TSW_TENSOR_KEEP_LENGTH; });
    }

    const tsw_tensor& raw() const noexcept { return raw_; }

private:
    template <class Change>
    basic_tensor with(Change change) const noexcept
    {
        basic_tensor changed(*this);
        change(changed.raw_);
        return changed;
    }

    tsw_tensor raw_{};
};

using tensor = basic_tensor<false>;
using const_tensor = basic_tensor<true>;

/// Describe a tensor of another framework: a `const DLTensor *` of DLPack, in host memory.
inline result<tensor> tensor_from_dlpack(const void* dl_tensor)
{
    tsw_tensor raw;
    const tsw_status code = tsw_tensor_from_dlpack(dl_tensor, &raw);
    return detail::check(code, [&] { return tensor(raw); });
}

namespace detail {

// A list of tensors is a list of C's: a tensor has no other member.
template <bool IsConst>
const tsw_tensor* raw_list(span<const basic_tensor<IsConst>> tensors) noexcept
{
    static_assert(sizeof(basic_tensor<IsConst>) == sizeof(tsw_tensor));
    static_assert(std::is_standard_layout_v<basic_tensor<IsConst>>);
    return reinterpret_cast<const tsw_tensor*>(tensors.data());
}

} // namespace detail

/// A piece of a parameter's master, in memory or in a raw file.
class partition {
public:
    /// A piece in memory, `offset` elements into the parameter.
    partition(std::uint64_t id, std::uint64_t offset, const_tensor piece) noexcept
    {
        raw_.param_id = id;
        raw_.offset = offset;
        raw_.tensor = piece.raw();
    }
    /// A piece in a file, `file_offset` bytes into it. The path is not copied.
    partition(std::uint64_t id, std::uint64_t offset, text path, std::uint64_t numel, dtype type,
              std::uint64_t file_offset = 0) noexcept
        : partition(id, offset, const_tensor(nullptr, numel, type).at(file_offset))
    {
        raw_.path = path.get();
    }
    const tsw_partition& raw() const noexcept { return raw_; }

private:
    tsw_partition raw_{};
};

// ---- configuration and log ----------------------------------------------------------------------

/// A configuration: keys and values as text. Objects copy what they take of it.
class config {
public:
    /// A configuration with every key at its default.
    static result<config> make()
    {
        tsw_config* raw = tsw_config_new();
        if (raw == nullptr)
            return detail::fail<config>({status::no_memory, 0, "no memory for a configuration"});
        return config(raw);
    }
#if TENSORSWAP_EXCEPTIONS
    config() : config(make()) {}
#endif
    /// Take over a handle of C.
    explicit config(tsw_config* owned) noexcept : handle_(owned) {}

    result<> set(text key, text value)
    {
        return detail::check(tsw_config_set(handle_.get(), key.get(), value.get()));
    }
    template <class Number, class = std::enable_if_t<std::is_integral_v<Number>>>
    result<> set(text key, Number value)
    {
        if constexpr (std::is_same_v<Number, bool>)
            return set(key, value ? "true" : "false");
        else
            return set(key, std::to_string(value));
    }
    /// Take the values of our own JSON, or of a DeepSpeed configuration. All or nothing.
    result<> load_json(std::string_view json)
    {
        return detail::check(tsw_config_load_json(handle_.get(), json.data(), json.size()));
    }
    /// The value of a key in its normal form; nothing where there is no such key.
    std::optional<std::string> get(text key) const
    {
        if (tsw_config_get(handle_.get(), key.get(), nullptr, 0) == SIZE_MAX)
            return std::nullopt;
        return detail::text_from([&](char* out, std::size_t room) {
            return tsw_config_get(handle_.get(), key.get(), out, room);
        });
    }

    /// A key, its default, and what it does. The texts live as long as the library is loaded.
    struct key_help {
        const char* name;
        const char* default_value;
        const char* help;
    };
    static std::vector<key_help> keys()
    {
        std::vector<key_help> found;
        for (std::size_t i = 0; i < tsw_config_keys(); i++)
            found.push_back(
                {tsw_config_key_name(i), tsw_config_key_default(i), tsw_config_key_help(i)});
        return found;
    }

    /// The handle, for calls in C. It stays ours.
    tsw_config* raw() const noexcept { return handle_.get(); }

private:
    detail::owner<tsw_config, tsw_config_free> handle_;
};

/// A configuration, or none: the defaults, or those of the engine. For arguments.
class config_or_default {
public:
    config_or_default() noexcept = default;
    config_or_default(const config& given) noexcept : raw_(given.raw()) {}
    const tsw_config* raw() const noexcept { return raw_; }

private:
    const tsw_config* raw_ = nullptr;
};

/// Receives the library's log while it lives. One at a time for each process.
class log {
public:
    /// `receive(log_level, std::string_view target, std::string_view line)` runs on any thread, on
    /// several at once. It must not throw, wait, or free objects of the library.
    template <class Receive>
    static result<log> make(log_level level, Receive receive)
    {
        auto owned = std::make_unique<receiver<Receive>>(std::move(receive));
        const tsw_status code = tsw_set_log(
            [](void* user_data, std::uint32_t at, const char* target, const char* line) noexcept {
                static_cast<receiver<Receive>*>(user_data)->receive(
                    static_cast<log_level>(at), std::string_view(target), std::string_view(line));
            },
            owned.get(), static_cast<std::uint32_t>(level));
        return detail::check(code, [&] { return log(std::move(owned)); });
    }
#if TENSORSWAP_EXCEPTIONS
    template <class Receive>
    log(log_level level, Receive receive) : log(make(level, std::move(receive)))
    {
    }
#endif
    log(log&&) noexcept = default;
    log& operator=(log&&) = delete;
    ~log()
    {
        if (receiver_ != nullptr)
            tsw_set_log(nullptr, nullptr, TSW_LOG_OFF); // no call runs any more when it returns
    }

private:
    struct any_receiver {
        virtual ~any_receiver() = default;
    };
    template <class Receive>
    struct receiver final : any_receiver {
        explicit receiver(Receive given) : receive(std::move(given)) {}
        Receive receive;
    };
    explicit log(std::unique_ptr<any_receiver> owned) noexcept : receiver_(std::move(owned)) {}

    std::unique_ptr<any_receiver> receiver_;
};

// ---- engine -------------------------------------------------------------------------------------

/// How a request ended.
class completion {
public:
    status code() const noexcept { return static_cast<status>(raw_.status); }
    explicit operator bool() const noexcept { return raw_.status >= 0; }
    /// The errno behind it; 0 where there is none.
    int os_error() const noexcept { return raw_.os_error; }
    /// What happened, in one line; empty on success.
    std::string_view message() const noexcept { return raw_.message; }
    /// The place in the list of the tensor that failed first.
    std::optional<std::uint64_t> failed_index() const noexcept
    {
        return raw_.failed_index == UINT64_MAX ? std::nullopt : std::optional(raw_.failed_index);
    }
    tsw_ticket ticket() const noexcept { return raw_.ticket; }
    std::uint64_t bytes_done() const noexcept { return raw_.bytes_done; }
    std::chrono::nanoseconds elapsed() const noexcept
    {
        return std::chrono::nanoseconds(raw_.elapsed_ns);
    }
    /// The tag of the tensor that failed, else of the first one.
    std::uint64_t user_tag() const noexcept { return raw_.user_tag; }
    const tsw_completion& raw() const noexcept { return raw_; }

private:
    friend class engine;
    friend class request;
    tsw_completion raw_ = detail::sized<tsw_completion>();
};

/// A request under way. Its destructor waits: until then the memory is the engine's.
class [[nodiscard]] request {
public:
    /// Take over a ticket of C.
    request(tsw_engine* engine, tsw_ticket ticket) noexcept : engine_(engine), ticket_(ticket) {}
    request(request&& other) noexcept
        : engine_(other.engine_), ticket_(std::exchange(other.ticket_, 0))
    {
    }
    request& operator=(request&& other) noexcept
    {
        request before(std::move(*this)); // waits for what was here when it ends
        engine_ = other.engine_;
        ticket_ = std::exchange(other.ticket_, 0);
        return *this;
    }
    ~request()
    {
        if (ticket_ != 0)
            tsw_ticket_wait(engine_, ticket_, TSW_WAIT_FOREVER, nullptr);
    }

    /// Wait until it is over. Fails as the request did.
    result<completion> wait()
    {
        completion end;
        const tsw_status code = wait_raw(TSW_WAIT_FOREVER, end);
        return detail::check(code, [&] { return end; });
    }
    /// Wait for some time; nothing where it is not over then. Without exceptions the result is good
    /// then too: look at its value.
    result<std::optional<completion>> wait_for(timeout longest)
    {
        completion end;
        const tsw_status code = wait_raw(longest.count_ns(), end);
        if (code == TSW_ERR_TIMED_OUT && ticket_ != 0)
            return std::optional<completion>();
        return detail::check(code, [&] { return std::optional(end); });
    }
    /// Wait until it is over, and tell how, also where it failed: which tensor, how many bytes.
    result<completion> outcome()
    {
        completion end;
        const tsw_status code = wait_raw(TSW_WAIT_FOREVER, end);
        return detail::check(ticket_ == 0 && end.ticket() != 0 ? TSW_OK : code,
                             [&] { return end; });
    }
    /// Ask it to stop. It is over only after a wait, with `cancelled` or as if nothing was asked.
    result<> cancel() { return detail::check(tsw_ticket_cancel(engine_, ticket_)); }

    /// Bytes moved, and bytes in all.
    struct bytes {
        std::uint64_t done, total;
    };
    result<bytes> progress() const
    {
        bytes moved{};
        const tsw_status code = tsw_ticket_progress(engine_, ticket_, &moved.done, &moved.total);
        return detail::check(code, [&] { return moved; });
    }

    tsw_ticket ticket() const noexcept { return ticket_; }
    /// Give the ticket up: it is to be ended by `engine::poll`, which also tells when the memory is
    /// the caller's again.
    tsw_ticket detach() noexcept { return std::exchange(ticket_, 0); }

private:
    tsw_status wait_raw(std::uint64_t timeout_ns, completion& end) noexcept
    {
        const tsw_status code = tsw_ticket_wait(engine_, ticket_, timeout_ns, &end.raw_);
        if (end.raw_.ticket != 0 || code == TSW_ERR_BAD_TICKET)
            ticket_ = 0;
        return code;
    }

    tsw_engine* engine_;
    tsw_ticket ticket_;
};

/// Moves tensors between memory and files. Every function may be called by any thread.
class engine {
public:
    /// Start an engine; with the defaults where no configuration is given.
    static result<engine> make(config_or_default with = {})
    {
        tsw_engine* raw = nullptr;
        const tsw_status code = tsw_engine_new(with.raw(), &raw);
        return detail::check(code, [&] { return engine(raw); });
    }
#if TENSORSWAP_EXCEPTIONS
    explicit engine(config_or_default with = {}) : engine(make(with)) {}
#endif
    /// Take over a handle of C.
    explicit engine(tsw_engine* owned) noexcept : handle_(owned) {}

    /// Start writing tensors to files; `tensors[i]` goes to `paths[i]`. Never waits.
    result<request> swap_out(span<const const_tensor> tensors, span<const char* const> paths)
    {
        return submit(tsw_engine_swap_out, tensors, paths);
    }
    result<request> swap_out(span<const tensor> tensors, span<const char* const> paths)
    {
        return submit(tsw_engine_swap_out, tensors, paths);
    }
    result<request> swap_out(const_tensor source, text path)
    {
        const char* const paths[] = {path.get()};
        return swap_out(span<const const_tensor>(&source, 1), paths);
    }
    /// Start reading tensors from files; `tensors[i]` comes from `paths[i]`. Never waits.
    result<request> swap_in(span<const tensor> tensors, span<const char* const> paths)
    {
        return submit(tsw_engine_swap_in, tensors, paths);
    }
    result<request> swap_in(tensor destination, text path)
    {
        const char* const paths[] = {path.get()};
        return swap_in(span<const tensor>(&destination, 1), paths);
    }

    /// Wait for every request submitted before; deliver none. Fails with the first error of them.
    result<> wait_all()
    {
        return detail::check(tsw_engine_wait_all(handle_.get(), TSW_WAIT_FOREVER));
    }
    /// The same for some time: false where they are not over then.
    result<bool> wait_all_for(timeout longest)
    {
        return detail::in_time(tsw_engine_wait_all(handle_.get(), longest.count_ns()));
    }
    /// Deliver what is over, oldest first, into `room`, and return the part that was filled.
    result<span<completion>> poll(span<completion> room)
    {
        static_assert(sizeof(completion) == sizeof(tsw_completion));
        std::size_t count = 0;
        if (!room.empty())
            room[0].raw_ = detail::sized<tsw_completion>();
        const tsw_status code = tsw_ticket_poll(
            handle_.get(), reinterpret_cast<tsw_completion*>(room.data()), room.size(), &count);
        return detail::check(code, [&] { return room.first(count); });
    }
    /// The descriptor that is readable while a completion waits for `poll`. Only to be waited on.
    result<int> event_fd() const
    {
        std::int32_t descriptor = -1;
        const tsw_status code = tsw_engine_event_fd(handle_.get(), &descriptor);
        return detail::check(code, [&] { return int{descriptor}; });
    }

    /// Take nothing more, and wait until everything under way is over.
    result<> shutdown()
    {
        return detail::check(tsw_engine_shutdown(handle_.get(), TSW_WAIT_FOREVER));
    }
    /// The same for some time: false where it is not over then. Nothing more is taken all the same.
    result<bool> shutdown_for(timeout longest)
    {
        return detail::in_time(tsw_engine_shutdown(handle_.get(), longest.count_ns()));
    }

    /// What is in effect, and why, as JSON.
    std::string describe() const
    {
        return detail::text_from([&](char* out, std::size_t room) {
            return tsw_engine_describe(handle_.get(), out, room);
        });
    }
    /// All figures of the engine and of what was made with it, for Prometheus.
    std::string prometheus() const
    {
        return detail::text_from([&](char* out, std::size_t room) {
            return tsw_engine_prometheus(handle_.get(), out, room);
        });
    }
    result<engine_stats> stats() const
    {
        auto figures = detail::sized<engine_stats>();
        const tsw_status code = tsw_engine_get_stats(handle_.get(), &figures);
        return detail::check(code, [&] { return figures; });
    }

    /// The handle, for calls in C. It stays ours.
    tsw_engine* raw() const noexcept { return handle_.get(); }

private:
    template <class Start, bool IsConst>
    result<request> submit(Start start, span<const basic_tensor<IsConst>> tensors,
                           span<const char* const> paths)
    {
        if (tensors.size() != paths.size())
            return detail::fail<request>(detail::lists_differ(tensors.size(), paths.size()));
        tsw_ticket ticket = 0;
        const tsw_status code = start(handle_.get(), detail::raw_list(tensors), paths.data(),
                                      tensors.size(), &ticket);
        return detail::check(code, [&] { return request(handle_.get(), ticket); });
    }

    detail::owner<tsw_engine, tsw_engine_free> handle_;
};

// ---- pinned memory ------------------------------------------------------------------------------

/// Pinned memory that storage reads and writes without a copy.
class buffer {
public:
    /// Allocate: zeroed, in huge pages where they are to be had, locked as the keys say.
    static result<buffer> make(engine& with, std::uint64_t len_bytes)
    {
        tsw_buffer* raw = nullptr;
        const tsw_status code = tsw_buffer_new(with.raw(), len_bytes, &raw);
        return detail::check(code, [&] { return buffer(raw); });
    }
#if TENSORSWAP_EXCEPTIONS
    buffer(engine& with, std::uint64_t len_bytes) : buffer(make(with, len_bytes)) {}
#endif
    /// Lend memory of your own, such as cudaHostAlloc's, until the buffer is destroyed.
    static result<buffer> registered(engine& with, void* data, std::uint64_t len_bytes)
    {
        return registered_raw(with, data, len_bytes, nullptr, nullptr);
    }
    /// The same with `on_release(void* data, std::uint64_t len_bytes)`, which runs once, on any
    /// thread, when nothing touches the memory any more. It may free it; it must not wait.
    template <class OnRelease>
    static result<buffer> registered(engine& with, void* data, std::uint64_t len_bytes,
                                     OnRelease on_release)
    {
        static_assert(std::is_nothrow_invocable_v<OnRelease&, void*, std::uint64_t>,
                      "on_release(void*, std::uint64_t) is to be noexcept");
        auto hook = std::make_unique<OnRelease>(std::move(on_release));
        auto made = registered_raw(
            with, data, len_bytes,
            [](void* user_data, void* memory, std::uint64_t bytes) {
                const std::unique_ptr<OnRelease> last(static_cast<OnRelease*>(user_data));
                (*last)(memory, bytes);
            },
            hook.get());
#if TENSORSWAP_EXCEPTIONS
        hook.release(); // the library has it now
#else
        if (made)
            hook.release();
#endif
        return made;
    }
    /// Take over a handle of C.
    explicit buffer(tsw_buffer* owned) noexcept : handle_(owned) {}

    void* data() const noexcept { return tsw_buffer_data(handle_.get()); }
    std::uint64_t len_bytes() const noexcept { return tsw_buffer_len(handle_.get()); }
    /// The memory as elements; a rest that is no whole element is left out.
    template <class T>
    span<T> as() const noexcept
    {
        assert(reinterpret_cast<std::uintptr_t>(data()) % alignof(T) == 0);
        return {static_cast<T*>(data()), static_cast<std::size_t>(len_bytes() / sizeof(T))};
    }

    /// The handle, for calls in C. It stays ours.
    tsw_buffer* raw() const noexcept { return handle_.get(); }

private:
    static result<buffer> registered_raw(engine& with, void* data, std::uint64_t len_bytes,
                                         tsw_release_fn on_release, void* user_data)
    {
        tsw_buffer* raw = nullptr;
        const tsw_status code =
            tsw_buffer_register(with.raw(), data, len_bytes, on_release, user_data, &raw);
        return detail::check(code, [&] { return buffer(raw); });
    }

    detail::owner<tsw_buffer, tsw_buffer_free> handle_;
};

// ---- swapper ------------------------------------------------------------------------------------

namespace detail {

// The timers of a swapper or an optimizer that have run.
template <class Names, class Handle>
std::vector<const char*> timer_names(Names names_of, const Handle* handle)
{
    std::vector<const char*> names(names_of(handle, nullptr, 0));
    const std::size_t count = names_of(handle, names.data(), names.size());
    names.resize(count < names.size() ? count : names.size());
    return names;
}

} // namespace detail

/// Swaps tensors out and in through pinned buffers of its own. One thread at a time.
class swapper {
public:
    static result<swapper> make(engine& with, config_or_default given = {})
    {
        tsw_swapper* raw = nullptr;
        const tsw_status code = tsw_swapper_new(with.raw(), given.raw(), &raw);
        return detail::check(code, [&] { return swapper(raw); });
    }
#if TENSORSWAP_EXCEPTIONS
    explicit swapper(engine& with, config_or_default given = {}) : swapper(make(with, given)) {}
#endif
    /// Take over a handle of C.
    explicit swapper(tsw_swapper* owned) noexcept : handle_(owned) {}
    swapper(swapper&&) noexcept = default;
    swapper& operator=(swapper&& other) noexcept
    {
        handle_ = std::move(other.handle_); // first, as it still writes from the buffers
        buffers_ = std::move(other.buffers_);
        return *this;
    }

    /// Give it the buffers it stages tensors in, for one dtype or, with `bytes`, for any. They are
    /// the swapper's until `release_buffers`; where this fails they stay the caller's.
    result<> add_buffers(std::vector<buffer>&& buffers, dtype type)
    {
        std::vector<tsw_buffer*> raw;
        for (const buffer& each : buffers)
            raw.push_back(each.raw());
        const tsw_status code = tsw_swapper_add_buffers(handle_.get(), raw.data(), raw.size(),
                                                        static_cast<std::uint32_t>(type));
        if (code >= 0)
            buffers_ = std::move(buffers);
        return detail::check(code);
    }
    bool has_buffers() const noexcept { return tsw_swapper_has_buffers(handle_.get()) != 0; }
    /// Flush, and give the buffers back into `buffers`; also where the flush failed.
    result<> release_buffers(std::vector<buffer>& buffers)
    {
        std::vector<tsw_buffer*> raw(buffers_.size());
        std::size_t count = 0;
        const tsw_status code =
            tsw_swapper_release_buffers(handle_.get(), raw.data(), raw.size(), &count);
        if (!has_buffers())
            buffers = std::exchange(buffers_, {});
        return detail::check(code);
    }

    /// Stage tensors for writing: their memory is the caller's again when this returns.
    result<> swap_out(span<const const_tensor> tensors, span<const char* const> paths)
    {
        return transfer(tsw_swapper_swap_out, tensors, paths);
    }
    result<> swap_out(span<const tensor> tensors, span<const char* const> paths)
    {
        return transfer(tsw_swapper_swap_out, tensors, paths);
    }
    result<> swap_out(const_tensor source, text path)
    {
        const char* const paths[] = {path.get()};
        return swap_out(span<const const_tensor>(&source, 1), paths);
    }
    /// Read tensors: the data is there when this returns.
    result<> swap_in(span<const tensor> tensors, span<const char* const> paths)
    {
        return transfer(tsw_swapper_swap_in, tensors, paths);
    }
    result<> swap_in(tensor destination, text path)
    {
        const char* const paths[] = {path.get()};
        return swap_in(span<const tensor>(&destination, 1), paths);
    }
    /// Start writing what is staged, without waiting for it.
    result<> submit() { return detail::check(tsw_swapper_submit(handle_.get())); }
    /// Wait until everything staged is written. Fails with the first error of the writes.
    result<> flush() { return detail::check(tsw_swapper_flush(handle_.get(), TSW_WAIT_FOREVER)); }
    /// The same for some time: false where it is not written then; the writes go on.
    result<bool> flush_for(timeout longest)
    {
        return detail::in_time(tsw_swapper_flush(handle_.get(), longest.count_ns()));
    }

    result<swapper_stats> stats() const
    {
        auto figures = detail::sized<swapper_stats>();
        const tsw_status code = tsw_swapper_get_stats(handle_.get(), &figures);
        return detail::check(code, [&] { return figures; });
    }
    std::vector<const char*> timer_names() const
    {
        return detail::timer_names(tsw_swapper_timer_names, handle_.get());
    }
    result<tensorswap::timer> timer(text name) const
    {
        auto figures = detail::sized<tsw_timer>();
        const tsw_status code = tsw_swapper_get_timer(handle_.get(), name.get(), &figures);
        return detail::check(code, [&] { return figures; });
    }

    /// The handle, for calls in C. It stays ours.
    tsw_swapper* raw() const noexcept { return handle_.get(); }

private:
    template <class Call, bool IsConst>
    result<> transfer(Call call, span<const basic_tensor<IsConst>> tensors,
                  span<const char* const> paths)
    {
        if (tensors.size() != paths.size())
            return detail::fail<void>(detail::lists_differ(tensors.size(), paths.size()));
        return detail::check(
            call(handle_.get(), detail::raw_list(tensors), paths.data(), tensors.size()));
    }

    // DROP ORDER: the swapper is freed first (last in the list); it writes from the buffers.
    std::vector<buffer> buffers_;
    detail::owner<tsw_swapper, tsw_swapper_free> handle_;
};

// ---- optimizer ----------------------------------------------------------------------------------

/// A parameter in pinned memory, the caller's to read and write until it is given back.
class parameter {
public:
    std::uint64_t id() const noexcept { return raw_.id; }
    std::uint64_t numel() const noexcept { return raw_.numel; }
    std::size_t states_len() const noexcept { return raw_.states_len; }

    /// The elements of a state, in the order of `add_state`. Fails with dtype_mismatch where they
    /// are not of this type, with invalid_argument where there is no such state.
    template <class T>
    result<span<T>> state(std::size_t index) const
    {
        if (index >= raw_.states_len)
            return detail::fail<span<T>>({status::invalid_argument, 0,
                                          "parameter " + std::to_string(raw_.id)
                                              + " has no state " + std::to_string(index)});
        return elements<T>(raw_.states[index]);
    }
    /// The elements of the gradient; empty where no region was swapped out.
    template <class T>
    result<span<T>> gradient() const
    {
        return elements<T>(raw_.gradient);
    }
    bool has_gradient() const noexcept { return raw_.gradient.data != nullptr; }

    /// Say that nothing in it was changed, so that a step does not write it back.
    void unchanged() noexcept { changed_ = false; }

    const tsw_parameter_view& raw() const noexcept { return raw_; }

private:
    friend class training_step;
    friend class optimizer;

    template <class T>
    result<span<T>> elements(const tsw_state_view& view) const
    {
        const auto found = static_cast<dtype>(view.dtype);
        if (view.data != nullptr && found != dtype_of<std::remove_cv_t<T>>)
            return detail::fail<span<T>>(
                {status::dtype_mismatch, 0,
                 "parameter " + std::to_string(raw_.id) + " is asked for elements of "
                     + name(dtype_of<std::remove_cv_t<T>>) + ", they are " + name(found)});
        return span<T>(static_cast<T*>(view.data), static_cast<std::size_t>(view.numel));
    }

    tsw_parameter_view raw_ = detail::sized<tsw_parameter_view>();
    bool changed_ = true;
};

/// A step that is open: hands out parameters until all were given, and is undone when it is
/// destroyed before it was finished.
///
///     for (auto& p : step)
///         ...
///
/// Each turn of the loop waits for a parameter and gives it back at its end. As many threads as the
/// key `views_max` says may run such a loop over one step. Leaving the loop early (break, return, an exception) undoes
/// the step; loops of other threads then end with cancelled. Where it cannot be undone (the key
/// `sync` at none, and what was before is no more) it stays open: another loop gets the parameters
/// that are left, and `finish` ends it. One whose object is gone can only be left by freeing the
/// optimizer.
class [[nodiscard]] training_step {
public:
    training_step(training_step&& other) noexcept
        : optimizer_(std::exchange(other.optimizer_, nullptr)),
          finishes_itself_(other.finishes_itself_), given_(std::move(other.given_))
    {
    }
    training_step& operator=(training_step&&) = delete;
    ~training_step()
    {
        if (optimizer_ == nullptr)
            return;
        for (const std::uint64_t id : given_->ids)
            tsw_optimizer_step_done(optimizer_, id, 0);
        tsw_optimizer_step_abort(optimizer_);
    }

    struct sentinel {};

    /// Made for range-for: it holds the parameter that is out, and neither copies nor moves.
    class iterator {
    public:
        explicit iterator(training_step* step) : step_(step) { advance(); }
        iterator(const iterator&) = delete;
        iterator& operator=(const iterator&) = delete;
        ~iterator()
        {
            if (step_ != nullptr)
                step_->drop(current_);
        }

        parameter& operator*() noexcept { return current_; }
        parameter* operator->() noexcept { return &current_; }
        iterator& operator++()
        {
            training_step* const step = std::exchange(step_, nullptr);
#if TENSORSWAP_EXCEPTIONS
            step->done(current_);
            step_ = step;
#else
            if (step->done(current_))
                step_ = step;
            else
                return *this; // `finish` tells
#endif
            advance();
            return *this;
        }
        friend bool operator==(const iterator& left, sentinel) noexcept
        {
            return left.step_ == nullptr;
        }
        friend bool operator!=(const iterator& left, sentinel) noexcept
        {
            return left.step_ != nullptr;
        }

    private:
        void advance()
        {
            training_step* const step = std::exchange(step_, nullptr);
            current_ = parameter();
            const tsw_status code = tsw_optimizer_step_next(step->optimizer_, &current_.raw_);
            if (code == TSW_OK)
                step_ = step;
#if TENSORSWAP_EXCEPTIONS
            detail::check(code);
            if (code == TSW_END && step->finishes_itself_)
                step->finish();
#endif
        }

        training_step* step_; // NULL where no parameter is out
        parameter current_;
    };

    iterator begin() { return iterator(this); }
    sentinel end() const noexcept { return {}; }

    /// Get the next parameter, without a loop: false where all were given out. `inout` is to be
    /// given back by `done`; a step that is destroyed before takes it back. Any thread.
    result<bool> next(parameter& inout)
    {
        inout = parameter();
        const tsw_status code = tsw_optimizer_step_next(optimizer_, &inout.raw_);
        if (code == TSW_OK)
            given_->add(inout.id());
        return detail::check(code, [&] { return code != TSW_END; });
    }
    /// Give back what `next` gave. Any thread, not only the one that got it.
    result<> done(const parameter& given)
    {
        const tsw_status code = tsw_optimizer_step_done(optimizer_, given.id(), given.changed_);
        if (code >= 0)
            given_->remove(given.id());
        return detail::check(code);
    }

    /// End the step: it becomes durable in the background. Fails with the first error of its reads
    /// and writes, and where a parameter is still out; the step then stays open.
    result<> finish()
    {
        const tsw_status code = tsw_optimizer_step_end(optimizer_);
        if (code >= 0)
            optimizer_ = nullptr;
        return detail::check(code);
    }
    /// Undo the step: all is as if it had not been begun, but its gradients are gone. Busy while
    /// a parameter is out; it takes effect all the same, and is to be called again.
    result<> abort()
    {
        const tsw_status code = tsw_optimizer_step_abort(optimizer_);
        if (code >= 0)
            optimizer_ = nullptr;
        return detail::check(code);
    }

private:
    friend class optimizer;

    // What `next` gave and `done` has not got back.
    struct given_out {
        void add(std::uint64_t id)
        {
            const std::lock_guard<std::mutex> guard(mutex);
            ids.push_back(id);
        }
        void remove(std::uint64_t id)
        {
            const std::lock_guard<std::mutex> guard(mutex);
            const auto found = std::find(ids.begin(), ids.end(), id);
            if (found != ids.end())
                ids.erase(found);
        }

        std::mutex mutex;
        std::vector<std::uint64_t> ids;
    };

    training_step(tsw_optimizer* open, bool finishes_itself,
                  std::unique_ptr<given_out> given) noexcept
        : optimizer_(open), finishes_itself_(finishes_itself), given_(std::move(given))
    {
    }
    // The loop was left with this one out, half updated perhaps: the step is undone, and what was
    // changed is dropped with it.
    void drop(const parameter& given) noexcept
    {
        tsw_optimizer_step_abort(optimizer_);
        tsw_optimizer_step_done(optimizer_, given.id(), 1);
    }

    tsw_optimizer* optimizer_; // NULL where the step is over
    bool finishes_itself_;
    std::unique_ptr<given_out> given_;
};

/// Keeps the states of parameters in a store, and brings them in to be updated. One thread at a
/// time, but for const functions and for the loops over a step.
class optimizer {
public:
    /// Open the store that the configuration names, or make one.
    static result<optimizer> make(engine& with, config_or_default given = {})
    {
        tsw_optimizer* raw = nullptr;
        const tsw_status code = tsw_optimizer_new(with.raw(), given.raw(), &raw);
        return detail::check(code, [&] {
            optimizer made(raw);
            made.engine_ = with.raw();
            return made;
        });
    }
#if TENSORSWAP_EXCEPTIONS
    explicit optimizer(engine& with, config_or_default given = {}) : optimizer(make(with, given)) {}
#endif
    /// Take over a handle of C.
    explicit optimizer(tsw_optimizer* owned) noexcept : handle_(owned) {}

    /// Add a state that every parameter has, before any parameter. State 0 is the master.
    result<> add_state(text name, dtype type) { return add_state(name, type, type); }
    /// The same, with another type on storage.
    result<> add_state(text name, dtype type, dtype disk_type)
    {
        return detail::check(tsw_optimizer_add_state(handle_.get(), name.get(),
                                                     static_cast<std::uint32_t>(type),
                                                     static_cast<std::uint32_t>(disk_type)));
    }
    /// Register a parameter, or attach to the one that the store records under this id.
    result<> add_parameter(std::uint64_t id, text name, std::uint64_t numel)
    {
        return detail::check(tsw_optimizer_add_parameter(handle_.get(), id, name.get(), numel));
    }

    /// Give a parameter the values of its master, and zero to its other states. Pending until the
    /// next commit.
    result<> initialize(std::uint64_t id, const_tensor source)
    {
        return initialize(span<const std::uint64_t>(&id, 1), span<const const_tensor>(&source, 1));
    }
    result<> initialize(span<const std::uint64_t> ids, span<const const_tensor> sources)
    {
        if (ids.size() != sources.size())
            return detail::fail<void>(detail::lists_differ(sources.size(), ids.size()));
        return detail::check(tsw_optimizer_initialize_parameters(
            handle_.get(), ids.data(), detail::raw_list(sources), ids.size()));
    }
    /// The same from pieces, in memory or in raw files, that cover each parameter exactly.
    result<> initialize_from_swapped(span<const partition> pieces)
    {
        static_assert(sizeof(partition) == sizeof(tsw_partition));
        return detail::check(tsw_optimizer_initialize_from_swapped(
            handle_.get(), reinterpret_cast<const tsw_partition*>(pieces.data()), pieces.size()));
    }
    /// Start a copy of the step that was committed last, in a directory that is not there yet. `with`
    /// is the engine that the optimizer was made with.
    result<request> snapshot(engine& with, text directory)
    {
        if (engine_ != nullptr && with.raw() != engine_)
            return detail::fail<request>({status::invalid_argument, 0,
                                          "a snapshot is a request of the optimizer's own engine"});
        tsw_ticket ticket = 0;
        const tsw_status code = tsw_optimizer_snapshot(handle_.get(), directory.get(), &ticket);
        return detail::check(code, [&] { return request(with.raw(), ticket); });
    }
    /// Bring a snapshot back, into a new store to which the states were added.
    result<> restore(text directory)
    {
        return detail::check(tsw_optimizer_restore(handle_.get(), directory.get()));
    }
    /// Write all states of all parameters as safetensors: one file, or several and their index where
    /// the data is longer than a bound.
    result<> export_safetensors(text file, std::uint64_t shard_bytes_max = 0)
    {
        return detail::check(
            tsw_optimizer_export_safetensors(handle_.get(), file.get(), shard_bytes_max));
    }
    /// Give parameters the values of their master from a safetensors file or the index of several,
    /// by the names that an export gives them. Pending until the next commit.
    result<> initialize_from_safetensors(text file, span<const std::uint64_t> ids)
    {
        return detail::check(tsw_optimizer_initialize_from_safetensors(
            handle_.get(), file.get(), ids.data(), nullptr, ids.size()));
    }
    /// The same by these names; nullptr is the one of an export.
    result<> initialize_from_safetensors(text file, span<const std::uint64_t> ids,
                                         span<const char* const> names)
    {
        if (ids.size() != names.size())
            return detail::fail<void>(detail::lists_differ(ids.size(), names.size(), " names"));
        return detail::check(tsw_optimizer_initialize_from_safetensors(
            handle_.get(), file.get(), ids.data(), names.data(), ids.size()));
    }
    /// Set the moments of all parameters back to zero. Pending until the next commit.
    result<> purge_state() { return detail::check(tsw_optimizer_purge_state(handle_.get())); }
    /// Copy one state of a parameter into memory.
    result<> read_state(std::uint64_t id, text state, tensor destination)
    {
        return detail::check(
            tsw_optimizer_read_state(handle_.get(), id, state.get(), &destination.raw()));
    }
    /// Replace one state of a parameter. Pending until the next commit.
    result<> write_state(std::uint64_t id, text state, const_tensor source)
    {
        return detail::check(
            tsw_optimizer_write_state(handle_.get(), id, state.get(), &source.raw()));
    }

    /// Say that a backward pass begins, and that it is over.
    result<> pre_backward() { return detail::check(tsw_optimizer_pre_backward(handle_.get())); }
    result<> post_backward() { return detail::check(tsw_optimizer_post_backward(handle_.get())); }
    /// Take a region of a parameter's gradient, `offset` elements into it.
    result<> swap_out_gradients(std::uint64_t id, std::uint64_t offset, const_tensor region)
    {
        return swap_out_gradients(id, span<const std::uint64_t>(&offset, 1),
                                  span<const const_tensor>(&region, 1));
    }
    result<> swap_out_gradients(std::uint64_t id, span<const std::uint64_t> offsets,
                                span<const const_tensor> regions)
    {
        if (offsets.size() != regions.size())
            return detail::fail<void>(detail::lists_differ(regions.size(), offsets.size()));
        return detail::check(tsw_optimizer_swap_out_gradients(
            handle_.get(), id, offsets.data(), detail::raw_list(regions), offsets.size()));
    }
    /// Wait until the gradients that go to storage are there.
    result<> flush_gradients()
    {
        return detail::check(tsw_optimizer_flush_gradients(handle_.get()));
    }
    /// Forget all gradients.
    result<> discard_gradients()
    {
        return detail::check(tsw_optimizer_discard_gradients(handle_.get()));
    }
    /// The sum over finite elements, and how many are not finite.
    struct norm {
        double sum_of_squares;
        std::uint64_t nonfinite_count;
    };
    result<norm> gradient_norm(std::uint64_t id)
    {
        norm found{};
        const tsw_status code = tsw_optimizer_gradient_norm(
            handle_.get(), id, &found.sum_of_squares, &found.nonfinite_count);
        return detail::check(code, [&] { return found; });
    }

#if TENSORSWAP_EXCEPTIONS
    /// A step in one loop: `for (auto& p : optimizer.step())` begins it, and ends it when every
    /// parameter was given back. Over all parameters, or over those of the list.
    tensorswap::training_step step() { return begin(nullptr, 0, true); }
    tensorswap::training_step step(span<const std::uint64_t> ids)
    {
        return begin(ids, true);
    }
#endif
    /// Begin a step that ends with `finish`: for several threads, or for what is to be done between
    /// the last update and the end. Over all parameters, or over those of the list; over none of them
    /// where it is empty, which counts as a step.
    result<training_step> begin_step() { return begin(nullptr, 0, false); }
    result<training_step> begin_step(span<const std::uint64_t> ids)
    {
        return begin(ids, false);
    }

    /// Bring a parameter in, outside of a step, and begin to bring in the next one. It is the
    /// caller's until `swap_out_state` or, where nothing was changed, `release_state`.
    result<parameter> swap_in_state(std::uint64_t id, std::uint64_t next_id = no_parameter)
    {
        parameter in;
        const tsw_status code = tsw_optimizer_swap_in_state(handle_.get(), id, next_id, &in.raw_);
        return detail::check(code, [&] { return in; });
    }
    /// Whether the caller waits for a write.
    enum class write : std::uint32_t { waits = 0, in_background = 1 };
    result<> swap_out_state(std::uint64_t id, write how = write::in_background)
    {
        return detail::check(
            tsw_optimizer_swap_out_state(handle_.get(), id, static_cast<std::uint32_t>(how)));
    }
    result<> release_state(std::uint64_t id)
    {
        return detail::check(tsw_optimizer_release_state(handle_.get(), id));
    }

    /// Make all that is done durable, and wait for it.
    result<> commit() { return detail::check(tsw_optimizer_commit(handle_.get())); }
    /// How many steps were done, counting from the store's beginning.
    std::uint64_t step_number() const noexcept { return tsw_optimizer_step_number(handle_.get()); }

    /// Set what is committed with the next step: a value of plain bytes, or any bytes.
    template <class Value>
    result<> set_user_data(const Value& value)
    {
        static_assert(std::is_trivially_copyable_v<Value> && !std::is_pointer_v<Value>,
                      "only what may be copied byte by byte can be stored");
        return set_user_data(&value, sizeof value);
    }
    result<> set_user_data(const void* data, std::size_t len_bytes)
    {
        return detail::check(tsw_optimizer_set_user_data(handle_.get(), data, len_bytes));
    }
    /// The user data that was set last, or that the store was opened with.
    std::vector<std::byte> user_data() const
    {
        std::vector<std::byte> bytes(tsw_optimizer_get_user_data(handle_.get(), nullptr, 0));
        tsw_optimizer_get_user_data(handle_.get(), bytes.data(), bytes.size());
        return bytes;
    }
    /// The same as a value; nothing where it is of another length.
    template <class Value>
    std::optional<Value> user_data_as() const
    {
        static_assert(std::is_trivially_copyable_v<Value>);
        Value value{};
        if (tsw_optimizer_get_user_data(handle_.get(), &value, sizeof value) != sizeof value)
            return std::nullopt;
        return value;
    }

    /// What the store records of each parameter, in the order of first registration.
    struct recorded {
        std::uint64_t id, numel;
    };
    std::size_t parameters_len() const noexcept
    {
        return tsw_optimizer_parameters_len(handle_.get());
    }
    result<recorded> parameter_at(std::size_t index) const
    {
        recorded found{};
        const tsw_status code =
            tsw_optimizer_parameter_at(handle_.get(), index, &found.id, &found.numel);
        return detail::check(code, [&] { return found; });
    }

    result<optimizer_stats> stats() const
    {
        auto figures = detail::sized<optimizer_stats>();
        const tsw_status code = tsw_optimizer_get_stats(handle_.get(), &figures);
        return detail::check(code, [&] { return figures; });
    }
    std::vector<const char*> timer_names() const
    {
        return detail::timer_names(tsw_optimizer_timer_names, handle_.get());
    }
    result<tensorswap::timer> timer(text name) const
    {
        auto figures = detail::sized<tsw_timer>();
        const tsw_status code = tsw_optimizer_get_timer(handle_.get(), name.get(), &figures);
        return detail::check(code, [&] { return figures; });
    }

    /// The handle, for calls in C. It stays ours.
    tsw_optimizer* raw() const noexcept { return handle_.get(); }

private:
    result<training_step> begin(const std::uint64_t* ids, std::size_t count, bool finishes_itself)
    {
        auto given = std::make_unique<training_step::given_out>();
        const tsw_status code = tsw_optimizer_step_begin(handle_.get(), ids, count);
        return detail::check(code, [&] {
            return training_step(handle_.get(), finishes_itself, std::move(given));
        });
    }
    // An empty list is no parameter; NULL would be all of them.
    result<training_step> begin(span<const std::uint64_t> ids, bool finishes_itself)
    {
        const std::uint64_t none = no_parameter;
        return begin(ids.empty() ? &none : ids.data(), ids.size(), finishes_itself);
    }

    detail::owner<tsw_optimizer, tsw_optimizer_free> handle_;
    tsw_engine* engine_ = nullptr; // NULL where it is not known
};

} // namespace TENSORSWAP_MODE
} // namespace tensorswap

#if __cplusplus >= 202002L && defined(__cpp_lib_ranges)
// A span of ours is a view like any other: std::span takes it.
template <class T>
inline constexpr bool std::ranges::enable_borrowed_range<tensorswap::span<T>> = true;
template <class T>
inline constexpr bool std::ranges::enable_view<tensorswap::span<T>> = true;
#endif

#undef TENSORSWAP_MODE

#endif /* TENSORSWAP_HPP */
