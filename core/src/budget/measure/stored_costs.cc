#include "budget/measure/stored_costs.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <ctime>

#include "base/error.h"
#include "base/file/atomic_file.h"
#include "base/file/file.h"
#include "base/file/user_data.h"
#include "base/sha256.h"
#include "budget/measure/measure_costs.h"

namespace sol_rt {
namespace {

constexpr size_t kLongestName = 80;     // bytes of the model's name in a file's
constexpr size_t kDigest = 8;           // hexadecimal digits of a hash in a file's name
constexpr std::time_t kServes = 3600;   // seconds that a table serves whose times scattered

constexpr const char *kProfiled = ".json", *kQuick = ".quick.json";

// Beginning of the names of a bundle's tables.
std::string StemOf(const Config& config, const std::string& identity) {
  std::string name = config.model.name.substr(0, kLongestName);
  std::replace_if(name.begin(), name.end(), [](unsigned char c) { return !std::isalnum(c) && c != '.' && c != '_'; }, '-');
  if (name.empty() || name[0] == '.') name.insert(0, "model");
  return name + "-" + identity.substr(0, kDigest) + "-";
}

std::string FileOf(const std::string& folder, const Config& config, const std::string& identity, const std::string& device, bool quick) {
  return JoinPath(folder, StemOf(config, identity) + Sha256Hex(device).substr(0, kDigest) + (quick ? kQuick : kProfiled));
}

// True if `sol-rt profile` measured the bundle on some device.
bool IsProfiled(const std::string& folder, const Config& config, const std::string& identity) {
  const std::string stem = StemOf(config, identity);
  const std::vector<std::string> names = NamesIn(folder);
  return std::any_of(names.begin(), names.end(), [&](const std::string& name) {
    return name.size() == stem.size() + kDigest + std::strlen(kProfiled) && name.rfind(stem, 0) == 0 && name.substr(stem.size() + kDigest) == kProfiled;
  });
}

bool IsExpired(const CostTable& table) {
  const std::time_t now = std::time(nullptr);  // times are written alike, so their texts are in order
  return !table.steady && !(IsoTime(now - kServes) <= table.created && table.created <= IsoTime(now));
}

StoredCosts Read(const std::string& file, const Config& config, const std::string& identity, const std::string& device) {
  StoredCosts found;
  found.table = ReadFile(file, kLargestTable);
  const CostTable table = CostTable::FromJson(found.table);
  const auto refuse = [](const std::string& what) { throw Error(SOL_ERROR_BUNDLE, "cost table: " + what + "; run `sol-rt profile` again"); };
  if (table.bundle != identity) refuse("made for another bundle");
  if (table.device != device) refuse("made on " + Brief(table.device));
  if (IsExpired(table)) refuse("its times scattered, and are over an hour old");
  found.cost = MakeMeasuredCost(config, table);
  found.file = file;
  return found;
}

// FindCosts, but for the note's words on costs that stay bytes.
StoredCosts Find(const std::string& folder, const Config& config, const std::string& identity, const std::string& device, bool quick) {
  std::string problem;
  for (const bool of_first_load : {false, true}) {
    const std::string file = FileOf(folder, config, identity, device, of_first_load);
    if (folder.empty() || (of_first_load && !quick) || KindOf(file) == FileKind::kNone) continue;
    try {
      StoredCosts found = Read(file, config, identity, device);
      found.note = problem;
      return found;
    } catch (const Error& error) {
      if (!of_first_load) problem = file + ": " + error.what();  // the other one is measured again
    }
  }
  StoredCosts bytes;
  bytes.cost = MakeBytesCost(config);
  bytes.note = problem;
  return bytes;
}

// Says why costs stay bytes where a table might have served.
StoredCosts WithReason(StoredCosts costs, const std::string& folder, const Config& config, const std::string& identity) {
  if (!costs.table.empty()) return costs;
  if (costs.note.empty() && !folder.empty() && IsProfiled(folder, config, identity)) {
    costs.note = "measured on another device or with another number of threads than this run's";
  }
  if (!costs.note.empty()) costs.note += "; costs are bytes";
  return costs;
}

}  // namespace

std::string CostsFolder() {
  const std::string folder = UserDataFolder();
  return folder.empty() ? folder : JoinPath(folder, "costs");
}

StoredCosts FindCosts(const std::string& folder, const Config& config, const std::string& identity, const std::string& device, bool quick) {
  return WithReason(Find(folder, config, identity, device, quick), folder, config, identity);
}

StoredCosts FirstCosts(const std::string& folder, EngineFactory& factory, const Bundle& bundle, int64_t max_context, const Progress& progress) {
  const Config& config = bundle.config();
  StoredCosts costs = Find(folder, config, bundle.identity(), factory.Device(), true);
  if (!costs.table.empty() || !config.LossesMeasured() || max_context < 2) return WithReason(std::move(costs), folder, config, bundle.identity());
  const CostTable table = MeasureCosts(factory, bundle, max_context, progress);
  costs.table = table.ToJson();
  costs.cost = MakeMeasuredCost(config, table);
  std::string done = "measured what each action costs on this machine, once and quickly";
  if (!table.steady) done = "measured what each action costs on this machine, quickly; the times varied, so they are measured again after an hour";
  try {
    costs.file = KeepCosts(folder, config, table);
    done += "; sol-rt profile measures it better";
  } catch (const Error& error) {
    if (error.code() != SOL_ERROR_WRITE && error.code() != SOL_ERROR_USAGE) throw;
    done = std::string("measured what each action costs here, but not for the next load: ") + error.what();
  }
  costs.note += (costs.note.empty() ? "" : "; ") + done;
  return costs;
}

std::string KeepCosts(const std::string& folder, const Config& config, const CostTable& table) {
  if (folder.empty()) UsageFault("costs: got no folder for tables, and no folder of the user; set SOL_RT_HOME");
  const std::string file = FileOf(folder, config, table.bundle, table.device, table.quick);
  MakeFolders(folder);
  WriteFileAtomically(file, table.ToJson());
  return file;
}

}  // namespace sol_rt
