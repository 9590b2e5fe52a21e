// `carousel manual` and `carousel completion`: the manual page and the shells' completion scripts, made from
// the same tables as --help.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>

#include "launcher/commands.h"
#include "launcher/manual/command_outline.h"
#include "launcher/manual/completion_script.h"
#include "launcher/manual/man_page.h"
#include "launcher/version.h"

namespace carousel {

void AddManualCommands(CLI::App& app, std::function<int()>* run) {
  CLI::App* const manual = app.add_subcommand("manual", "Print the manual page (man reads it)");
  manual->footer(R"(Example:
  carousel manual | man -l -)");
  manual->callback([&app, run] {
    *run = [&app] {
      std::fputs(ManPage(OutlineOf(app), std::string("carousel ") + Version()).c_str(), stdout);
      return kExitOk;
    };
  });

  CLI::App* const completion =
      app.add_subcommand("completion", "Print the script by which a shell completes command lines");
  const auto shell = std::make_shared<std::string>();
  completion->add_option("SHELL", *shell, "For which shell")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh"}));
  completion->footer(R"(Examples:
  source <(carousel completion bash)                        # for this shell
  carousel completion bash >~/.local/share/bash-completion/completions/carousel
  carousel completion zsh >~/.zfunc/_carousel               # a folder of fpath)");
  completion->callback([&app, run, shell] {
    *run = [&app, shell] {
      const CommandOutline outline = OutlineOf(app);
      std::fputs((*shell == "zsh" ? ZshCompletion(outline) : BashCompletion(outline)).c_str(), stdout);
      return kExitOk;
    };
  });
}
}  // namespace carousel
