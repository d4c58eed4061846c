# The images for those who build with a container engine:
#
#   docker build --target sluice-controller --build-arg VERSION=v0.1.0 .
#
# The released ones are made by `make images`, which needs none, is reproducible
# and adds the bill of materials and the licences of all modules.
FROM --platform=$BUILDPLATFORM golang:1.26.6 AS build
ARG TARGETOS TARGETARCH VERSION=v0.0.0
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY LICENSE ./
COPY api api
COPY cmd cmd
COPY config config
COPY controllers controllers
COPY internal internal
COPY nodeagent nodeagent
COPY webhook webhook
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -buildvcs=false -ldflags "-s -w -buildid= -X main.version=$VERSION" -o /out/ ./cmd/...

FROM scratch AS sluice-agent
COPY --from=build /src/LICENSE /licenses/LICENSE
COPY --from=build /out/sluice-agent /sluice-agent
# containerd's socket belongs to root, and only root may connect to it.
USER 0:0
ENTRYPOINT ["/sluice-agent"]

FROM scratch AS sluice-controller
COPY --from=build /src/LICENSE /licenses/LICENSE
COPY --from=build /out/sluice-controller /sluice-controller
USER 65532:65532
ENTRYPOINT ["/sluice-controller"]
