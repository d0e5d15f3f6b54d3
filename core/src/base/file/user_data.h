// The folder in which sol_rt keeps what it makes for a user.
#pragma once

#include <string>
#include <vector>

namespace sol_rt {

// The value of an environment variable; empty where it is not set.
std::string EnvironmentText(const char* name);

// `$SOL_RT_HOME`, else `sol_rt` in the system's folder for data of the user's programs; empty where the environment names none.
std::string UserDataFolder();

// Makes a folder and those above it. Throws SOL_ERROR_WRITE.
void MakeFolders(const std::string& folder);

// Names of a folder's entries, in no order; none where it cannot be read.
std::vector<std::string> NamesIn(const std::string& folder);

}  // namespace sol_rt
