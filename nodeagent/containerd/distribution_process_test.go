// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"
	"k8s.io/client-go/util/cert"

	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
)

// distribution is a process of the registry that others run.
type distribution struct {
	host, url string
	authority []byte // PEM; nil for HTTP
	log       string

	process *exec.Cmd
	ended   chan struct{} // closed when the process is gone
}

type distributionOptions struct {
	// cacheOf is the URL of the registry of which it is a pull-through cache.
	cacheOf string
	// private: it speaks HTTPS, with an authority of its own, to those who know the password.
	private bool
}

const (
	user, password = "robot", "hunter2"
	htpasswd       = user + ":$2a$04$DOZaXgGmGysyRw5oOZk3hef3eGKNPt92tDR.nDjfQEtuBXks6Icje"
)

// agent is how an agent's requests begin to say whose they are.
const agent = "sluice-agent/"

// runDistribution starts one at the gateway. It ends with the spec, and with this process.
func runDistribution(ctx context.Context, opts distributionOptions) *distribution {
	GinkgoHelper()
	program, err := cluster.Registry(ctx, GinkgoLogr.Info)
	Expect(err).NotTo(HaveOccurred())
	dir := GinkgoT().TempDir()
	d := &distribution{log: filepath.Join(dir, "log"), ended: make(chan struct{})}
	log, err := os.Create(d.log)
	Expect(err).NotTo(HaveOccurred())
	defer log.Close()
	d.process = exec.Command(program, "serve", d.configure(dir, opts))
	d.process.Env = []string{"OTEL_TRACES_EXPORTER=none"}
	d.process.Stdout, d.process.Stderr = log, log
	Expect(d.start()).To(Succeed())
	DeferCleanup(d.end)

	var address []string
	Eventually(ctx, func() []string {
		address = regexp.MustCompile(`listening on ([\d.:]+)`).FindStringSubmatch(d.output())
		return address
	}).ShouldNot(BeNil(), d.output)
	d.host = address[1]
	d.url = "http://" + d.host
	if opts.private {
		d.url = "https://" + d.host
	}
	return d
}

// start starts the process from a thread that stays as long as it does: the kernel takes the end of
// that thread for the end of this process.
func (d *distribution) start() error {
	d.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := d.process.Start()
		started <- err
		if err == nil {
			_ = d.process.Wait()
		}
		close(d.ended)
	}()
	return <-started
}

// end kills it, and waits until it is gone.
func (d *distribution) end() {
	_ = d.process.Process.Kill() // it may have ended
	<-d.ended
}

// configure writes the configuration, and returns the path of it. JSON is YAML as well.
func (d *distribution) configure(dir string, opts distributionOptions) string {
	GinkgoHelper()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		Expect(os.WriteFile(path, content, 0o600)).To(Succeed())
		return path
	}
	type object map[string]any
	server := object{"addr": machines.GatewayIP + ":0"}
	config := object{"version": "0.1", "storage": object{"filesystem": object{"rootdirectory": filepath.Join(dir, "content")}}, "http": server}
	if opts.cacheOf != "" {
		config["proxy"] = object{"remoteurl": opts.cacheOf}
	}
	if opts.private {
		certificate, key, err := cert.GenerateSelfSignedCertKey(machines.GatewayIP, nil, nil)
		Expect(err).NotTo(HaveOccurred())
		d.authority = certificate
		server["tls"] = object{"certificate": write("server.pem", certificate), "key": write("key.pem", key)}
		config["auth"] = object{"htpasswd": object{"realm": "test", "path": write("htpasswd", []byte(htpasswd))}}
	}
	raw, err := json.Marshal(config)
	Expect(err).NotTo(HaveOccurred())
	return write("config.yml", raw)
}

// output is what it has written.
func (d *distribution) output() string {
	GinkgoHelper()
	text, err := os.ReadFile(d.log)
	Expect(err).NotTo(HaveOccurred())
	return string(text)
}

// asked are the paths of the content that it has sent to clients whose name begins so.
func (d *distribution) asked(client string) (paths []string) {
	GinkgoHelper()
	for _, match := range regexp.MustCompile(`"GET (\S+)[^"]*" 200 \d+ "[^"]*" "([^"]*)"`).FindAllStringSubmatch(d.output(), -1) {
		path, _, _ := strings.Cut(match[1], "?")
		if path != "/v2/" && strings.HasPrefix(match[2], client) {
			paths = append(paths, path)
		}
	}
	return paths
}

// push moves the tag to another image, of three layers.
func (d *distribution) push(ctx context.Context, seed string) *pair {
	GinkgoHelper()
	image, err := images.Image(images.Options{Layers: images.Layers(seed, 3, images.KiB), Seed: seed})
	Expect(err).NotTo(HaveOccurred())
	tag, err := name.NewTag(d.host + "/team/app:v1")
	Expect(err).NotTo(HaveOccurred())
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(d.authority)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}
	Expect(remote.Write(tag, image, remote.WithContext(ctx), remote.WithTransport(transport),
		remote.WithAuth(&authn.Basic{Username: user, Password: password}))).To(Succeed())
	hash, err := image.Digest()
	Expect(err).NotTo(HaveOccurred())
	ref, err := imageref.Parse(tag.String())
	Expect(err).NotTo(HaveOccurred())
	return &pair{image: image, ref: ref, digest: digest.Digest(hash.String())}
}
