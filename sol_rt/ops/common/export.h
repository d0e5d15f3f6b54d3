// Marks the functions that hosts find in the library by name.
#pragma once

#ifdef _WIN32
#define SOL_EXPORT __declspec(dllexport)
#else
#define SOL_EXPORT __attribute__((visibility("default")))
#endif
