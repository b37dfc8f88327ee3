// Program testcluster is a whole Kubernetes in one file, for the tests: etcd, the control plane, kubelet, kube-proxy and
// kubectl. Which of them it is, its own name says (a symbolic link `kubectl`) or else the first argument.
//
// One program and not seven: they share nearly all of their code, so this links once and takes 180 MB instead of 600.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	_ "k8s.io/component-base/logs/json/register"          // --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // client metrics on /metrics
	_ "k8s.io/component-base/metrics/prometheus/version"
)

var components = map[string]func() *cobra.Command{
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllermanager.NewControllerManagerCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kube-proxy":              proxy.NewProxyCommand,
	"kubelet":                 func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
	"kubectl":                 kubectl.NewDefaultKubectlCommand,
}

// component is the name to go by; the arguments are then what the component expects, its own name first.
func component(args []string) (string, []string) {
	name := filepath.Base(args[0])
	if _, known := components[name]; (known || name == "etcd") || len(args) == 1 {
		return name, append([]string{name}, args[1:]...)
	}
	return args[1], args[1:]
}

func main() {
	name, args := component(os.Args)
	os.Args = args
	if name == "etcd" {
		etcdmain.Main(args)
		return
	}
	make, known := components[name]
	if !known {
		fmt.Fprintf(os.Stderr, "testcluster: %q is none of its programs\n", name)
		os.Exit(2)
	}
	os.Exit(cli.Run(make()))
}
