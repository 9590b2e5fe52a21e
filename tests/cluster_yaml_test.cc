// The Kubernetes template is YAML of the shape that the MPI Operator reads, and its command is one of this
// program.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <set>

#include "checkpoints/yaml_fields.h"
#include "temp_dir.h"

namespace carousel {
namespace {

nlohmann::json ReadJob() {
  const std::string path = std::string(CAROUSEL_SOURCE_DIR) + "/launcher/cluster/mpijob.yaml";
  std::ifstream in(path);
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  absl::StatusOr<nlohmann::json> job = ParseYamlObject(text, path);
  EXPECT_TRUE(job.ok()) << job.status();
  return job.ok() ? *job : nlohmann::json::object();
}
const nlohmann::json& PodOf(const nlohmann::json& job, const char* role) {
  return job.at("spec").at("mpiReplicaSpecs").at(role).at("template").at("spec");
}

TEST(MpiJob, HasWhatTheOperatorAndTheProgramNeed) {
  const nlohmann::json job = ReadJob();
  EXPECT_EQ(job.at("apiVersion"), "kubeflow.org/v2beta1");
  EXPECT_EQ(job.at("kind"), "MPIJob");
  const nlohmann::json& spec = job.at("spec");
  const int64_t slots = spec.at("slotsPerWorker");
  const nlohmann::json& launcher = PodOf(job, "Launcher");
  const nlohmann::json& worker = PodOf(job, "Worker").at("containers").at(0);
  EXPECT_EQ(worker.at("resources").at("limits").at("nvidia.com/gpu"), slots);
  EXPECT_EQ(launcher.at("containers").at(0).at("image"), worker.at("image"));
  // Volumes that containers name are there.
  for (const char* role : {"Launcher", "Worker"}) {
    std::set<std::string> volumes;
    for (const auto& volume : PodOf(job, role).at("volumes")) volumes.insert(volume.at("name"));
    for (const auto& mount : PodOf(job, role).at("containers").at(0).at("volumeMounts")) {
      EXPECT_EQ(volumes.count(mount.at("name")), 1u) << mount;
    }
  }
  // Kubernetes takes strings only, and kills when its patience is over.
  double grace = 0;
  const nlohmann::json& command = launcher.at("containers").at(0).at("command");
  for (size_t i = 0; i < command.size(); ++i) {
    ASSERT_TRUE(command[i].is_string()) << command[i];
    if (command[i] == "--grace") grace = std::stod(command[i + 1].get<std::string>());
    if (command[i] == "--per_node") {
      EXPECT_EQ(command[i + 1], std::to_string(slots));
    }
  }
  EXPECT_GT(grace, 0);
  EXPECT_LT(grace, launcher.at("terminationGracePeriodSeconds").get<double>());
}

TEST(MpiJob, ItsCommandIsOneOfThisProgram) {
  const nlohmann::json job = ReadJob();
  const TempDir directory;
  const std::string hostfile = directory.path() + "/hostfile";
  // As the operator writes it.
  std::ofstream(hostfile) << "carousel-7b-worker-0.carousel-7b.default.svc slots=8\n"
                             "carousel-7b-worker-1.carousel-7b.default.svc slots=8\n";
  std::string line = "cd '" + std::string(CAROUSEL_SOURCE_DIR) + "' && '" CAROUSEL_PROGRAM "'";
  const nlohmann::json& command = PodOf(job, "Launcher").at("containers").at(0).at("command");
  ASSERT_EQ(command.at(0), "carousel");
  for (size_t i = 1; i < command.size(); ++i) {
    std::string word = command[i];
    if (word == "/etc/mpi/hostfile") word = hostfile;
    if (word == "train") line += " --dry_run";
    line += " '" + word + "'";
  }
  const std::string output = directory.path() + "/output";
  ASSERT_EQ(std::system((line + " >'" + output + "' 2>&1").c_str()), 0)
      << line << std::ifstream(output).rdbuf();
  std::ifstream in(output);
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  EXPECT_NE(text.find("-np 16"), std::string::npos) << text;
  EXPECT_NE(text.find("--run_dir /shared/runs/7b"), std::string::npos) << text;
}
}  // namespace
}  // namespace carousel
