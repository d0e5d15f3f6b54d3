// The ONNX Runtime REAL_ORT without KleidiAI: on Arm its products by 4 bits cut the weights' scales to bfloat16 and quantize a row of activations as a whole,
// so near ties end otherwise than on other processors.
#include <dlfcn.h>
#include <onnxruntime_c_api.h>

static const OrtApi* real;

static OrtStatus* ORT_API_CALL create_options(OrtSessionOptions** options) NO_EXCEPTION {
  OrtStatus* status = real->CreateSessionOptions(options);
  return status != NULL ? status : real->AddSessionConfigEntry(*options, "mlas.disable_kleidiai", "1");
}

static const OrtApiBase* base(void) {
  const OrtApiBase* (*entry)(void) = NULL;
  *(void**)&entry = dlsym(dlopen(REAL_ORT, RTLD_NOW | RTLD_LOCAL), "OrtGetApiBase");
  return entry();
}

static const OrtApi* ORT_API_CALL api(uint32_t version) NO_EXCEPTION {
  static OrtApi changed;
  real = base()->GetApi(version);
  if (real == NULL) return NULL;
  changed = *real;
  changed.CreateSessionOptions = create_options;
  return &changed;
}

static const char* ORT_API_CALL version(void) NO_EXCEPTION { return base()->GetVersionString(); }

const OrtApiBase* ORT_API_CALL OrtGetApiBase(void) NO_EXCEPTION {
  static const OrtApiBase made = {api, version};
  return &made;
}
