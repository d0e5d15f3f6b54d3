#include "base/cores.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>
#include <optional>
#include <sstream>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif

namespace sol_rt {
namespace {

constexpr double kSlow = 0.5;  // cores below this share of the fastest one's capacity do not count
constexpr double kNoLimit = std::numeric_limits<double>::infinity();

// The first line of a small file of the system; nothing if it can't be read.
std::optional<std::string> FirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  return line;
}

std::optional<int> WholeNumber(const std::string& text) {
  if (text.empty() || text.size() > 9 || text.find_first_not_of("0123456789") != std::string::npos) return std::nullopt;
  return std::stoi(text);
}

// The numbers of a list such as "16-23,30".
std::set<int> Listed(const std::string& path) {
  constexpr int kMost = 1 << 16;
  std::set<int> found;
  std::istringstream parts(FirstLine(path).value_or(""));
  for (std::string part; std::getline(parts, part, ',');) {
    const size_t dash = part.find('-');
    const auto first = WholeNumber(part.substr(0, dash)), last = dash == std::string::npos ? first : WholeNumber(part.substr(dash + 1));
    if (!first || !last) continue;
    for (int number = *first; number <= std::min(*last, kMost); ++number) found.insert(number);
  }
  return found;
}

std::set<int> FastCores(const std::string& devices, const std::set<int>& allowed) {
  std::set<int> fast;
  const std::set<int> efficient = Listed(devices + "/cpu_atom/cpus");  // Intel's hybrid processors
  std::set_difference(allowed.begin(), allowed.end(), efficient.begin(), efficient.end(), std::inserter(fast, fast.end()));
  if (!efficient.empty() && !fast.empty()) return fast;
  std::vector<std::pair<int, std::optional<int>>> capacities;  // Arm's
  int most = 0;
  for (const int number : allowed) {
    capacities.emplace_back(number, WholeNumber(FirstLine(devices + "/system/cpu/cpu" + std::to_string(number) + "/cpu_capacity").value_or("")));
    most = std::max(most, capacities.back().second.value_or(0));
  }
  fast.clear();
  for (const auto& [number, capacity] : capacities) {
    if (!capacity || *capacity >= kSlow * most) fast.insert(number);
  }
  return fast;
}

// Processors that a control group may use: both forms of its files.
double Quota(const std::string& folder) {
  std::string quota, period;
  std::istringstream newer(FirstLine(folder + "/cpu.max").value_or(""));
  std::string more;
  if (!(newer >> quota >> period) || newer >> more) {
    quota = FirstLine(folder + "/cpu.cfs_quota_us").value_or("");
    period = FirstLine(folder + "/cpu.cfs_period_us").value_or("");
  }
  const auto allowed = WholeNumber(quota), of = WholeNumber(period);  // "max" and -1 are no limits
  return allowed && of && *allowed > 0 && *of > 0 ? static_cast<double>(*allowed) / *of : kNoLimit;
}

// The least quota of a group and of those above it. In a container the mount is the group itself.
double LeastQuota(const std::string& mount, std::string group) {
  double least = Quota(mount);
  while (!group.empty() && group.back() == '/') group.pop_back();
  for (; !group.empty(); group.erase(std::min(group.size(), group.rfind('/')))) {
    least = std::min(least, Quota(mount + (group.front() == '/' ? "" : "/") + group));
    if (group.rfind('/') == std::string::npos) break;
  }
  return least;
}

double GroupQuota(const std::string& root) {
  double least = kNoLimit;
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // NUMBER:CONTROLLERS:GROUP
    std::istringstream fields(line);
    std::string number, controllers, group;
    std::getline(fields, number, ':');
    std::getline(fields, controllers, ':');
    std::getline(fields, group);
    const std::string mount = root + "/sys/fs/cgroup";
    if (number == "0" && controllers.empty()) {
      least = std::min(least, LeastQuota(mount, group));
    } else if (("," + controllers + ",").find(",cpu,") != std::string::npos) {
      least = std::min({least, LeastQuota(mount + "/" + controllers, group), LeastQuota(mount + "/cpu", group)});
    }
  }
  return least;
}

}  // namespace

std::set<int> AllowedCores() {
  std::set<int> found;
#ifdef __linux__
  cpu_set_t usable;
  if (sched_getaffinity(0, sizeof(usable), &usable) == 0) {
    for (int number = 0; number < CPU_SETSIZE; ++number) {
      if (CPU_ISSET(number, &usable)) found.insert(number);
    }
  }
#endif
  if (!found.empty()) return found;
  const int count = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  for (int number = 0; number < count; ++number) found.insert(found.end(), number);
  return found;
}

int32_t UsableCores(const std::string& root, const std::set<int>& allowed) {
  const double cores = static_cast<double>(FastCores(root + "/sys/devices", allowed).size());
  return static_cast<int32_t>(std::max(1.0, std::floor(std::min(cores, GroupQuota(root)))));
}

}  // namespace sol_rt
