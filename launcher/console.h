// What a training run shows while it works. On a terminal, one line that is always the newest; elsewhere one
// plain line per log interval, with constant columns that grep and awk can take apart:
//
//   step     20/600  loss  3.0712  grad_norm   1.284  lr 1.00e-03  tok/s    9120  mem   211 MiB  eta 0:04:21
//
// In a run there are, between mem and eta, "mfu  44.8%" (or "TFLOP/s 0.012" where the device's peak is not
// known) and the shares of the time that went into waiting, "data  0.1%  ckpt  0.0%  comm  2.3%";
// and at its end, once there are steps to compare with, "loss_z  +0.3  norm_z  -1.1".
//
// Used by one rank and one thread.
#pragma once
#include <cstdint>
#include <limits>
#include <optional>
#include <ostream>
#include <string>

namespace carousel {

// The terminal that people see this process on.
struct Terminal {
  bool live = false;     // a line may be rewritten in place
  int64_t columns = 80;  // its width
};
// Standard output's terminal. A rank's own output is always a pseudo terminal that mpirun reads, so then
// the question is what mpirun writes to.
Terminal FindTerminal();

struct ConsoleOptions {
  Terminal terminal;
  int64_t log_every_steps = 10;  // plain lines: every so many steps, and the first and the last step
  bool json = false;  // every line is a JSON object: of a step, or {"message":"..."}; there is no live line
};

class Console {
 public:
  // `out` must outlive the console.
  Console(std::ostream& out, const ConsoleOptions& options);
  ~Console();  // leaves the live line on the screen
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  struct StepLine {
    int64_t step = 0, total_steps = 0;  // steps done, this one included
    double loss = 0;                    // nats per token
    double grad_norm = 0, lr = 0;
    int64_t tokens = 0;  // of this step, over all ranks
    double seconds = 0;  // that this step took
    // Deviations of loss and norm above the median of the steps before (core/train/spike_score.h); NaN:
    // unknown
    double loss_z = std::numeric_limits<double>::quiet_NaN(),
           grad_norm_z = std::numeric_limits<double>::quiet_NaN();
  };
  // Of the newest log interval: shown with the steps from now on.
  struct Rates {
    double flops_per_second = 0;                            // of the model, on all ranks
    double mfu = std::numeric_limits<double>::quiet_NaN();  // share of the devices' peak; NaN: not known
    // Of the time, waiting: for data, until a state was copied for a save, in collectives. In percent.
    double data_percent = 0, checkpoint_percent = 0, communication_percent = 0;
  };
  void SetRates(const Rates& rates) { rates_ = rates; }
  // One finished step.
  void Step(const StepLine& line);
  // A line of text of its own. It may contain line breaks; other control characters are shown as '?', since
  // text that a model wrote must not command the terminal.
  void Message(const std::string& text);

 private:
  void EraseLive();
  void DrawLive();

  std::ostream& out_;
  ConsoleOptions options_;
  std::optional<Rates> rates_;
  bool first_ = true;
  std::string live_;  // the live line as it stands on the screen; empty if none
  // Of the steps since the last plain line, for tokens per second.
  int64_t interval_tokens_ = 0;
  double interval_seconds_ = 0;
  // Mean of the seconds per step, the newest ones above all, for the time that is left; without the first
  // step.
  double mean_step_seconds_ = 0;
  int64_t num_timed_ = 0;
};

// "0:04:21", "27:10:05", "3d 04:00:00"; "-" for what is not finite or negative.
std::string FormatDuration(double seconds);
// Resident memory of this process in bytes; 0 if the system does not say.
int64_t ResidentBytes();
}  // namespace carousel
