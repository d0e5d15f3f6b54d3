// Marks the functions that hosts find in the library by name.
#pragma once

#if defined(SOL_OPS_STATIC)
#define SOL_EXPORT  // the operators are a part of another library, which does not show them
#elif defined(_WIN32)
#define SOL_EXPORT __declspec(dllexport)
#else
#define SOL_EXPORT __attribute__((visibility("default")))
#endif
