// What the C++ test programs share: a check that ends the program with its place in the source.
#pragma once

#include <tensorswap.hpp>

#include <cstdio>
#include <cstdlib>

#define EXPECT(condition)                                                                         \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                  \
            std::exit(1);                                                                         \
        }                                                                                         \
    } while (false)

// A configuration with a store at this path, and views for several threads.
inline tensorswap::result<tensorswap::config> configured(const char* path)
{
    auto made = tensorswap::config::make();
#if TENSORSWAP_EXCEPTIONS
    tensorswap::config& config = made;
#else
    EXPECT(made);
    tensorswap::config& config = *made;
#endif
    tsw_config_set(config.raw(), "path", path);
    tsw_config_set(config.raw(), "views_max", "4");
    return made;
}

#if TENSORSWAP_EXCEPTIONS
// The failure of a call that must fail.
template <class Call>
tensorswap::error failure_of(Call call)
{
    try {
        call();
    } catch (const tensorswap::error& error) {
        return error;
    }
    std::fprintf(stderr, "a call succeeded that must fail\n");
    std::abort();
}
#endif
