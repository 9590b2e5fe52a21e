// Scripts by which a shell completes a command line: commands, options, and values where there are few; file
// names for everything else. They are tables, so that completing starts no program.
#pragma once
#include <string>

#include "launcher/manual/command_outline.h"

namespace carousel {

// For bash 4 or newer; to be sourced, or installed under the program's name in bash-completion's folder.
std::string BashCompletion(const CommandOutline& program);
// For zsh: a function file, `_PROGRAM` in a folder of fpath.
std::string ZshCompletion(const CommandOutline& program);
}  // namespace carousel
