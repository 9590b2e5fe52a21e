// What the subcommands of `carousel data` share. Each adds itself to `data` as launcher/commands.h describes.
#pragma once
#include <CLI/App.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "launcher/commands.h"

namespace carousel {

void AddDataInspect(CLI::App& data, std::function<int()>* run);
void AddDataTask(CLI::App& data, std::function<int()>* run);

// 1234567 -> "1,234,567".
std::string Grouped(int64_t number);

// Makes `command` run `function`, which takes the options and returns a status, when it is chosen.
template <class Options, class Function>
void RunWhenChosen(CLI::App* command, std::shared_ptr<Options> options, Function function,
                   std::function<int()>* run) {
  command->callback([options, function, run] {
    *run = [options, function] {
      const absl::Status status = function(*options);
      return status.ok() ? kExitOk : ReportError(status);
    };
  });
}
}  // namespace carousel
