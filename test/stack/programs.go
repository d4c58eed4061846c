// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package stack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/test/cluster"
)

// programs are our own binaries, built for one stack.
type programs struct{ dir string }

func (p programs) path(name string) string { return filepath.Join(p.dir, name) }

// build compiles the controller and the agent, with the race detector if
// wanted. The Go command's cache makes it quick.
func build(ctx context.Context, race bool) (programs, error) {
	root, err := repositoryRoot()
	if err != nil {
		return programs{}, err
	}
	dir, err := os.MkdirTemp("", "sluice-programs-")
	if err != nil {
		return programs{}, err
	}
	cmd := exec.CommandContext(ctx, "go", "build", fmt.Sprintf("-race=%t", race), "-o", dir+string(filepath.Separator),
		"./cmd/sluice-controller", "./cmd/sluice-agent")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return programs{}, errors.Join(fmt.Errorf("build controller and agent: %w\n%s", err, out), os.RemoveAll(dir))
	}
	return programs{dir: dir}, nil
}

// repositoryRoot is two folders above this file.
func repositoryRoot() (string, error) {
	_, file, _, _ := runtime.Caller(0)
	root := filepath.Join(filepath.Dir(file), "..", "..")
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		return "", fmt.Errorf("find the repository's root (was this built with -trimpath?): %w", err)
	}
	return root, nil
}

// StartController starts one more controller, under the service account and
// the role that it has when it is installed.
func (s *Stack) StartController(ctx context.Context) (*cluster.Process, error) {
	s.mu.Lock()
	index := len(s.controllers)
	s.controllers = append(s.controllers, nil)
	s.mu.Unlock()
	return s.RestartController(ctx, index)
}

// RestartController starts a controller that has ended again, as its Deployment does,
// under the same addresses. Controllers are counted from 0.
func (s *Stack) RestartController(ctx context.Context, index int) (*cluster.Process, error) {
	name := fmt.Sprintf("sluice-controller-%d", index+1)
	kubeconfig, err := s.kubeconfig(ctx, s.Cluster.Dir, "sluice-controller", name, nil)
	if err != nil {
		return nil, err
	}
	apiServer, err := url.Parse(s.config.Host)
	if err != nil {
		return nil, err
	}
	health := net.JoinHostPort(apiServer.Hostname(), strconv.Itoa(firstHealthPort+index))
	credentials, err := s.credentialFlags(index)
	if err != nil {
		return nil, err
	}
	webhooks, err := s.webhookFlags(index)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(s.programs.path("sluice-controller"), slices.Concat([]string{
		"--kubeconfig=" + kubeconfig,
		"--leader-elect-namespace=" + Namespace,
		"--metrics-bind-address=0", "--health-probe-bind-address=" + health,
	}, credentials, webhooks, s.options.ControllerFlags)...)
	cmd.Env = raceEnv()
	process, err := s.Cluster.ControlPlane.Start(name, cmd)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.controllers[index] = process
	s.mu.Unlock()
	return process, ready(ctx, process, health)
}

// Controllers are the controllers in the order of their start, the ended ones too.
func (s *Stack) Controllers() []*cluster.Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.controllers), func(p *cluster.Process) bool { return p == nil }) // not started yet
}

// equip configures a node's containerd for the mirror, and starts the agent.
func (s *Stack) equip(ctx context.Context, node *cluster.Node) error {
	if err := configureMirrors(node); err != nil {
		return fmt.Errorf("configure registries of %s: %w", node.Name, err)
	}
	_, err := s.StartAgent(ctx, node)
	return err
}

// Agent is the node's agent; nil if none was started.
func (s *Stack) Agent(node *cluster.Node) *cluster.Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.agents[node.Name]
}

// StartAgent starts the node's agent with a token that is bound to the node, as
// the kubelet projects it into a Pod of the DaemonSet.
func (s *Stack) StartAgent(ctx context.Context, node *cluster.Node) (*cluster.Process, error) {
	var object corev1.Node
	if err := s.Client.Get(ctx, client.ObjectKey{Name: node.Name}, &object); err != nil {
		return nil, err
	}
	bound := &authenticationv1.BoundObjectReference{Kind: "Node", APIVersion: "v1", Name: object.Name, UID: object.UID}
	kubeconfig, err := s.kubeconfig(ctx, node.Dir, "sluice-agent", "sluice-agent", bound)
	if err != nil {
		return nil, err
	}
	credentials, err := s.agentCredentialFlags(ctx, node, bound)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(s.programs.path("sluice-agent"), slices.Concat([]string{
		"--kubeconfig=" + kubeconfig,
		"--node-name=" + node.Name,
	}, credentials, s.options.AgentFlags)...)
	cmd.Env = raceEnv()
	process, err := node.Start("sluice-agent", cmd)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.agents[node.Name] = process
	s.mu.Unlock()
	return process, ready(ctx, process, net.JoinHostPort(node.IP, strconv.Itoa(firstHealthPort)))
}

// firstHealthPort is where a program answers /readyz; several controllers are
// on one address, on this port and those after it.
const firstHealthPort = 8081

// ready waits until a program says that it is, or has ended.
func ready(ctx context.Context, process *cluster.Process, address string) error {
	const bound, interval = time.Minute, 50 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	for {
		err := get(ctx, "http://"+address+"/readyz")
		if err == nil {
			return nil
		}
		select {
		case <-process.Done():
			log, _ := os.ReadFile(process.Log)
			return fmt.Errorf("%s ended: %s", filepath.Base(process.Log), bytes.TrimSpace(log[max(0, len(log)-2000):]))
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", filepath.Base(process.Log), err)
		case <-time.After(interval):
		}
	}
}

func get(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, response.Status)
	}
	return nil
}

// tokenSeconds outlasts every test, and a demo that is left up for a week.
const tokenSeconds = int64(7 * 24 * 3600)

// token requests one for a service account of Sluice's; without an audience it is
// for the API server.
func (s *Stack) token(ctx context.Context, account string, bound *authenticationv1.BoundObjectReference, audiences ...string) (string, error) {
	seconds := tokenSeconds
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		Audiences:         audiences,
		ExpirationSeconds: &seconds,
		BoundObjectRef:    bound,
	}}
	serviceAccount := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: account}}
	if err := s.Client.SubResource("token").Create(ctx, serviceAccount, request); err != nil {
		return "", fmt.Errorf("request a token for %s: %w", account, err)
	}
	return request.Status.Token, nil
}

// kubeconfig writes one for a service account of Sluice's, and returns its path.
func (s *Stack) kubeconfig(ctx context.Context, dir, account, name string, bound *authenticationv1.BoundObjectReference) (string, error) {
	token, err := s.token(ctx, account, bound)
	if err != nil {
		return "", err
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["sluice"] = &clientcmdapi.Cluster{
		Server:                   s.config.Host,
		CertificateAuthorityData: s.config.CAData,
		CertificateAuthority:     s.config.CAFile,
	}
	config.AuthInfos["sluice"] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts["sluice"] = &clientcmdapi.Context{Cluster: "sluice", AuthInfo: "sluice", Namespace: Namespace}
	config.CurrentContext = "sluice"
	path := filepath.Join(dir, name+".kubeconfig")
	return path, clientcmd.WriteToFile(*config, path)
}

// raceEnv makes a program go on after a race, so that the test ends as usual, and
// what was found is found in the log.
func raceEnv() []string { return append(os.Environ(), "GORACE=halt_on_error=0") }

// raceIn fails if the log of a process has a report of the race detector.
func (s *Stack) raceIn(process *cluster.Process) error {
	log, err := os.ReadFile(process.Log)
	if err != nil {
		return err
	}
	if at := bytes.Index(log, []byte("WARNING: DATA RACE")); at >= 0 {
		report := log[at:]
		if end := bytes.Index(report[1:], []byte("==================")); end >= 0 {
			report = report[:end+1]
		}
		return fmt.Errorf("race in %s:\n%s", filepath.Base(process.Log), report)
	}
	return nil
}
