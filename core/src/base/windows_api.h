// The Windows API without what C++ files don't want of it: the macros `min` and `max`, and the parts that are seldom used.
#pragma once

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#ifndef NOMINMAX  // mingw's C++ library defines it
#define NOMINMAX
#endif
#include <windows.h>
#endif
