#include "engine/ort/cache/saved_cache.h"

#include <algorithm>
#include <cstring>
#include <istream>
#include <ostream>
#include <utility>

#include "base/error.h"
#include "base/sha256.h"
#include "engine/ort/ort_model.h"

namespace sol_rt {
namespace {

constexpr char kMagic[8] = {'S', 'O', 'L', 'S', 'E', 'S', 'S', '\n'};
constexpr uint32_t kDense = 1, kRead = 2;  // versions: without readers, and with them
constexpr const char* kHint = "save the session again, or start without it";

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t native;     // 1: native operators filled the cache, so it has key codes
  char identity[64];   // of the bundle
  uint32_t layers, heads, head_dim, int8;
  uint64_t tokens;
};
static_assert(sizeof(Header) == 104, "the file's format");

Header HeaderOf(const OrtModel& model, size_t tokens, uint32_t version) {
  const ModelDims& dims = model.config().model;
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = version;
  header.native = model.native() ? 1 : 0;
  std::memcpy(header.identity, model.identity().data(), sizeof(header.identity));
  header.layers = static_cast<uint32_t>(dims.num_layers);
  header.heads = static_cast<uint32_t>(dims.num_kv_heads);
  header.head_dim = static_cast<uint32_t>(dims.head_dim);
  header.int8 = model.config().kv.dtype == "int8" ? 1 : 0;
  header.tokens = tokens;
  return header;
}

[[noreturn]] void Refuse(const std::string& got, const std::string& expected) { BundleFault("session file", "", got, expected, kHint); }

class Reader {
 public:
  explicit Reader(std::istream& stream) : stream_(stream) {}
  void Read(void* data, size_t size) {
    ReadRaw(data, size);
    sha_.Update(data, size);
  }
  void ReadRaw(void* data, size_t size) {
    stream_.read(static_cast<char*>(data), static_cast<std::streamsize>(size));
    if (stream_.gcount() != static_cast<std::streamsize>(size)) Refuse("a file that ends too early", "a whole one");
  }
  // To be asked before memory is taken for what comes next.
  void RequireLeft(uint64_t size) {
    const std::streamoff at = stream_.tellg(), end = stream_.seekg(0, std::ios::end).tellg();
    stream_.seekg(at);
    if (end < at || static_cast<uint64_t>(end - at) < size) Refuse("a file that ends too early", "a whole one");
  }
  std::array<uint8_t, 32> Digest() { return sha_.Digest(); }

 private:
  std::istream& stream_;
  Sha256 sha_;
};

using Write = std::function<void(const void*, size_t)>;

void WriteCopies(const Write& write, const States::Copy* copies, size_t count) {
  const int64_t held = std::count_if(copies, copies + count, [](const States::Copy& copy) { return copy.length > 0; });
  write(&held, sizeof(held));
  for (size_t i = 0; i < count; ++i) {
    if (copies[i].length <= 0) continue;
    write(&copies[i].length, sizeof(copies[i].length));
    write(copies[i].states.data(), copies[i].states.size() * sizeof(float));
  }
}

std::vector<States::Copy> ReadCopies(Reader& reader, const States& states, size_t most) {
  int64_t held;
  reader.Read(&held, sizeof(held));
  if (held < 0 || held > static_cast<int64_t>(most)) Refuse(std::to_string(held) + " copies of states", "at most " + std::to_string(most));
  std::vector<States::Copy> copies(static_cast<size_t>(held));
  for (States::Copy& copy : copies) {
    reader.Read(&copy.length, sizeof(copy.length));
    copy.states.resize(states.Numbers());
    reader.Read(copy.states.data(), copy.states.size() * sizeof(float));
  }
  return copies;
}

void CheckHeader(const Header& header, const OrtModel& model) {
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0) Refuse("another kind of file", "one that sol_session_save wrote");
  if (header.version != kDense && header.version != kRead) {
    Refuse("version " + std::to_string(header.version), "version " + std::to_string(kDense) + " or " + std::to_string(kRead));
  }
  const Header wanted = HeaderOf(model, header.tokens, header.version);
  if (std::memcmp(header.identity, wanted.identity, sizeof(header.identity)) != 0) {
    Refuse("a session of another bundle", "one of " + model.bundle().path());
  }
  if (header.layers != wanted.layers || header.heads != wanted.heads || header.head_dim != wanted.head_dim || header.int8 != wanted.int8) {
    Refuse("a cache of another layout", "this bundle's");
  }
  if (header.native == 0 && wanted.native != 0) {
    Refuse("a cache that function bodies filled, without key codes", "one that native operators filled");
  }
}

}  // namespace

void SaveCache(std::ostream& stream, const OrtModel& model, const KvCache& cache, const States* states, const std::vector<int32_t>& tokens,
               const std::vector<int32_t>& readers) {
  Sha256 sha;
  const auto write = [&](const void* data, size_t size) {
    stream.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
    sha.Update(data, size);
  };
  const auto count = static_cast<int64_t>(tokens.size());
  const std::vector<int64_t>& firsts = cache.firsts();
  const Header header = HeaderOf(model, tokens.size(), readers.empty() ? kDense : kRead);
  write(&header, sizeof(header));
  if (count > 0) {
    write(tokens.data(), tokens.size() * sizeof(int32_t));
    for (const int64_t first : firsts) {
      const int64_t held = std::min(first, count);
      write(&held, sizeof(held));
    }
    for (size_t i = 0; i < cache.buffers().size(); ++i) {
      const CacheBuffer& buffer = cache.buffers()[i];
      const int64_t first = std::min(firsts[buffer.layer], count);
      for (int64_t head = 0; head < cache.heads(); ++head) {
        write(cache.Tokens(i, head, first), static_cast<size_t>(count - first) * buffer.TokenBytes());
      }
    }
    if (states != nullptr) {
      WriteCopies(write, states->kept().data(), states->kept().size());
      WriteCopies(write, states->last().data(), states->last().size());
    }
    write(readers.data(), readers.size() * sizeof(int32_t));
  }
  const std::array<uint8_t, 32> digest = sha.Digest();
  stream.write(reinterpret_cast<const char*>(digest.data()), static_cast<std::streamsize>(digest.size()));
}

SavedTokens RestoreCache(std::istream& stream, const OrtModel& model, KvCache& cache, States* states, const std::function<void(int64_t)>& make_room) {
  Reader reader(stream);
  Header header;
  reader.Read(&header, sizeof(header));
  CheckHeader(header, model);
  // The count is not yet known to be sound: the context and the file's size bound what is allocated.
  if (header.tokens > static_cast<uint64_t>(model.config().model.max_context)) {
    Refuse(std::to_string(header.tokens) + " tokens", "at most the model's context");
  }
  const auto count = static_cast<size_t>(header.tokens);
  reader.RequireLeft(count * sizeof(int32_t));
  std::vector<int32_t> tokens(count), readers(header.version == kRead ? count : 0);
  std::vector<int64_t> firsts(cache.firsts().size(), 0);
  std::vector<States::Copy> kept, last;
  if (count > 0) {
    reader.Read(tokens.data(), count * sizeof(int32_t));
    reader.Read(firsts.data(), firsts.size() * sizeof(int64_t));
  }
  if (!cache.Possible(firsts, static_cast<int64_t>(count))) Refuse("tokens held from an impossible place on", "places before the last token");
  uint64_t size = 0;
  for (const CacheBuffer& buffer : cache.buffers()) {
    size += static_cast<uint64_t>(cache.heads()) * (count - static_cast<size_t>(firsts[buffer.layer])) * buffer.TokenBytes();
    reader.RequireLeft(size);  // of each buffer, so that the sum of hostile sizes does not overflow
  }
  make_room(static_cast<int64_t>(count));
  try {
    for (size_t i = 0; count > 0 && i < cache.buffers().size(); ++i) {
      const CacheBuffer& buffer = cache.buffers()[i];
      const int64_t first = firsts[buffer.layer];
      const size_t held = count - static_cast<size_t>(first);
      for (int64_t head = 0; head < cache.heads(); ++head) reader.Read(cache.Tokens(i, head, first), held * buffer.TokenBytes());
    }
    if (count > 0 && states != nullptr) {
      kept = ReadCopies(reader, *states, States::kMostCopies);
      last = ReadCopies(reader, *states, States::kLast);
      if (!States::Possible(kept, last, static_cast<int64_t>(count))) {
        Refuse("copies of states of impossible lengths", "lengths up to the last token");
      }
    }
    reader.Read(readers.data(), readers.size() * sizeof(int32_t));
    std::array<uint8_t, 32> stored;
    const std::array<uint8_t, 32> digest = reader.Digest();
    reader.ReadRaw(stored.data(), stored.size());
    if (digest != stored) Refuse("content that does not match its checksum", "an undamaged file");
    for (const int32_t token : tokens) {
      if (token < 0 || token >= model.config().model.vocab_size) Refuse("token " + std::to_string(token), "tokens of the vocabulary");
    }
    for (const int32_t one : readers) {
      if (one < 0 || static_cast<size_t>(one) >= model.config().variant_order.size()) Refuse("reader " + std::to_string(one), "one of the bundle's variants");
    }
  } catch (...) {
    cache.Wipe(0, static_cast<int64_t>(count));
    throw;
  }
  cache.HoldFrom(std::move(firsts));
  if (states != nullptr) states->TakeOver(std::move(kept), std::move(last));
  return {std::move(tokens), std::move(readers)};
}

}  // namespace sol_rt
