// A library in ONNX Runtime's place, for tests: it says that it is of version FAKE_VERSION, and has the functions of the library FAKE_REAL, or none.
#include <stddef.h>
#ifdef FAKE_REAL
#include <dlfcn.h>
#endif

struct base {
  const void* (*api)(unsigned version);
  const char* (*version)(void);
};

static const void* api(unsigned version) {
#ifdef FAKE_REAL
  const struct base* (*entry)(void) = NULL;
  *(void**)&entry = dlsym(dlopen(FAKE_REAL, RTLD_NOW | RTLD_LOCAL), "OrtGetApiBase");
  return entry()->api(version);
#else
  (void)version;
  return NULL;
#endif
}

static const char* version(void) { return FAKE_VERSION; }

const struct base* OrtGetApiBase(void) {
  static const struct base made = {api, version};
  return &made;
}
